"""A process that dies before, in or after each write, fsync and rename leaves each record it has reported, once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.crashes import CRASHED, Crash, Moment
from helpers.forks import FORKS
from helpers.inversions import ORIGIN, SETTINGS, UNIT, inversion
from helpers.runs import create_run

from nti_batch import files, read_inversions
from nti_batch.output import part
from nti_batch.output.complete_mark import CompleteMark
from nti_batch.output.inversions import InversionRun, open_inversions
from nti_batch.records import Failure

KEYS = ("a", "bb")


def work(out: Path, reported: Path, step: int, moment: Moment, job: Callable[[InversionRun, Path], None]) -> None:
    """Do a job until the crash."""
    run, crash = open_inversions(out), Crash(step, moment)
    files.open = part.open = crash.open  # type: ignore[attr-defined]
    os.fsync, os.replace = crash.in_call(os.fsync), crash.in_call(os.replace)
    job(run, reported)
    os._exit(0)


def write_unit(run: InversionRun, reported: Path) -> None:
    """Write a work unit from its first image to its end."""
    writer = run.new_part(UNIT, ORIGIN)
    for key in KEYS:
        writer.add(inversion(key))
        with reported.open("a") as file:
            print(key, file=file)
    writer.add_failure(Failure(UNIT, "bad", "image", "it is HTML"))
    writer.commit()
    run.mark_complete(UNIT, CompleteMark(3, "state"))


def salvage_unit(run: InversionRun, reported: Path) -> None:
    """Begin as a later job does."""
    run.salvage(UNIT)


def redo_unit(run: InversionRun, reported: Path) -> None:
    """Work as a job does that computes an image again, and one that has failed."""
    run.claim(UNIT)
    writer = run.new_part(UNIT, ORIGIN)
    for key in (KEYS[0], "bad"):
        writer.add(inversion(key))
    writer.commit()


def survives(run: InversionRun, reported: Path) -> set[str]:
    """Begin the next job, and return its keys; each reported key is among them, once."""
    run.salvage(UNIT)
    rows = run.rows(UNIT)
    done = [row.key for row in rows if row.status == "done"]
    assert sorted(stored.key for stored in read_inversions(run.out)) == sorted(set(done)) == sorted(done)
    assert set(reported.read_text().split() if reported.exists() else ()) <= set(done)
    if mark := run.complete_mark(UNIT):
        assert len(rows) == mark.images == 3
    return {row.key for row in rows}


@pytest.mark.parametrize("moment", ["before", "half", "after"])
@pytest.mark.parametrize("job", [write_unit, salvage_unit, redo_unit])
def test_a_crash_at_any_step_loses_nothing_that_was_reported(
    tmp_path: Path, moment: Moment, job: Callable[[InversionRun, Path], None]
):
    fresh, reported = create_run(tmp_path / "fresh", SETTINGS, ["shard[0].tar"]), tmp_path / "reported"
    if job is redo_unit:
        write_unit(fresh, reported)
    elif job is salvage_unit:
        writer = fresh.new_part(UNIT, ORIGIN)
        for key in KEYS:
            writer.add(inversion(key))
        assert writer._file
        writer._file.close()
        reported.write_text("\n".join(KEYS))
    for step in range(100):
        out = Path(shutil.copytree(fresh.out, tmp_path / f"out-{step}"))
        if job is write_unit:
            reported.unlink(missing_ok=True)
        process = FORKS.Process(target=work, args=(out, reported, step, moment, job))
        process.start()
        process.join()
        keys = survives(open_inversions(out), reported)
        if process.exitcode == 0:
            break
        assert process.exitcode == CRASHED
    assert keys == ({*KEYS} if job is salvage_unit else {*KEYS, "bad"})
    assert step > 3, "the crash never came"
