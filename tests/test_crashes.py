"""A process that dies before, in or after each write, fsync and rename: what it had told is there, once."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from forks import FORKS
from test_inversions import SETTINGS, UNIT, inversion

from nti_batch import parts, read_inversions
from nti_batch.inversions import InversionRun
from nti_batch.records import Failure

Moment = Literal["before", "half", "after"]
DIED = 9
KEYS = ("a", "bb")


class Death:
    """Ends the process at one step of all those that reach the disk."""

    def __init__(self, step: int, moment: Moment) -> None:
        """Come at this step, counted from 0."""
        self.step, self.moment, self.steps = step, moment, itertools.count()

    def lurks_in(self, call: Callable[..., Any], halve: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
        """The call, or death before it, after it, or when it has done half."""

        def called(*arguments: Any) -> Any:
            is_now = next(self.steps) == self.step
            if is_now and self.moment == "half" and halve:
                call(halve(arguments[0]))
            if is_now and self.moment != "after":
                os._exit(DIED)
            result = call(*arguments)
            if is_now:
                os._exit(DIED)
            return result

        return called

    def open(self, *arguments: Any, **options: Any) -> Any:
        """A file in whose writes it lurks."""
        file = open(*arguments, **options)  # noqa: SIM115
        file.write = self.lurks_in(file.write, lambda content: content[: len(content) // 2])
        return file


def work(out: Path, told: Path, step: int, moment: Moment, job: Callable[[InversionRun, Path], None]) -> None:
    """Do a job until death comes."""
    run, death = InversionRun(out), Death(step, moment)
    parts.open = death.open  # type: ignore[attr-defined]
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
