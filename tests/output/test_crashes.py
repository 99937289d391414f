"""A process that dies before, in or after each write, fsync and rename: what it had told is there, once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.deaths import DIED, Death, Moment
from helpers.forks import FORKS
from helpers.inversions import SETTINGS, UNIT, inversion

from nti_batch import files, read_inversions
from nti_batch.output import part as parts
from nti_batch.output.inversions import InversionRun
from nti_batch.records import Failure

KEYS = ("a", "bb")


def work(out: Path, told: Path, step: int, moment: Moment, job: Callable[[InversionRun, Path], None]) -> None:
    """Do a job until death comes."""
    run, death = InversionRun(out), Death(step, moment)
    files.open = parts.open = death.open  # type: ignore[attr-defined]
    os.fsync, os.replace = death.lurks_in(os.fsync), death.lurks_in(os.replace)
    job(run, told)
    os._exit(0)


def write_unit(run: InversionRun, told: Path) -> None:
    """A work unit from its first image to its end."""
    part = run.new_part(UNIT)
    for key in KEYS:
        part.add(inversion(key))
        with told.open("a") as file:
            print(key, file=file)
    part.add_failure(Failure(UNIT, "bad", "image", "it is HTML"))
    part.commit()
    run.finish(UNIT, 3)


def salvage_unit(run: InversionRun, told: Path) -> None:
    """What a later job does first."""
    run.salvage(UNIT)


def forget_unit(run: InversionRun, told: Path) -> None:
    """What a job does first that tries failed images again."""
    run.forget_failures(UNIT)


def survives(run: InversionRun, told: Path) -> set[str]:
    """The keys that are there once the next job has begun; each is there once, and all that were told are."""
    run.salvage(UNIT)
    rows = run.rows(UNIT)
    done = [row.key for row in rows if row.status == "done"]
    assert sorted(stored.key for stored in read_inversions(run.out)) == sorted(set(done)) == sorted(done)
    assert set(told.read_text().split() if told.exists() else ()) <= set(done)
    if run.is_complete(UNIT):
        assert len(rows) == run.images_when_complete(UNIT) == 3
    return {row.key for row in rows}


@pytest.mark.parametrize("moment", ["before", "half", "after"])
@pytest.mark.parametrize("job", [write_unit, salvage_unit, forget_unit])
def test_death_at_any_step_loses_nothing_that_was_told(
    tmp_path: Path, moment: Moment, job: Callable[[InversionRun, Path], None]
):
    fresh, told = InversionRun(tmp_path / "fresh"), tmp_path / "told"
    fresh.create(SETTINGS, ["shard[0].tar"])
    if job is forget_unit:
        write_unit(fresh, told)
    elif job is salvage_unit:
        part = fresh.new_part(UNIT)
        for key in KEYS:
            part.add(inversion(key))
        assert part._file
        part._file.close()
        told.write_text("\n".join(KEYS))
    for step in range(100):
        out = Path(shutil.copytree(fresh.out, tmp_path / f"out-{step}"))
        if job is write_unit:
            told.unlink(missing_ok=True)
        process = FORKS.Process(target=work, args=(out, told, step, moment, job))
        process.start()
        process.join()
        keys = survives(InversionRun(out), told)
        if process.exitcode == 0:
            break
        assert process.exitcode == DIED
    assert keys == ({*KEYS, "bad"} if job is write_unit else {*KEYS})
    assert step > 3, "death never came"
