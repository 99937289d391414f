"""Starts jobs as a user does, and reads their output."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.runs import units_of
from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.output.inversions import open_inversions
from nti_batch.output.manifest_rows import InversionRow


def arguments(model: Path, shards: object, out: Path, *more: str) -> list[str]:
    """Return the arguments of a quick job: three steps with at most two updates each."""
    return [
        "invert",
        f"--model.name={model}",
        f"--data.shards={shards}",
        f"--output.dir={out}",
        "--model.num_steps=3",
        "--model.num_inner_steps=2",
        "--model.batch_size=2",
        "--data.units_per_shard=2",
        "--trainer.accelerator=cpu",
        *more,
    ]


def run_console(arguments: list[str], timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """Run `python -m nti_batch` in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "nti_batch", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def ids(out: Path) -> list[tuple[str, str]]:
    return sorted((stored.shard, stored.key) for stored in read_inversions(out))


def files(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (out / "inversions").iterdir()}


def hold_flags(hold: Path, images: int = 6, rank: int | None = None) -> list[str]:
    """Flags that hold a job, or one of its ranks, after some images while a file exists."""
    values = {"file": hold, "images": images} | ({} if rank is None else {"rank": rank})
    callback = "--trainer.callbacks+=helpers.hold.Hold"
    return [callback, *(f"--trainer.callbacks.{name}={value}" for name, value in values.items())]


@contextmanager
def held_job(arguments: list[str], hold: Path, flags: Sequence[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start `nti-batch` in its own process, which waits after six images while the file `hold` exists.

    Args:
        arguments: Arguments of the job.
        hold: File that is made, and removed at the end.
        flags: Flags that hold the job, in place of those for `hold` alone.
    """
    hold.touch()
    flags = hold_flags(hold) if flags is None else flags
    job = subprocess.Popen(
        [sys.executable, "-m", "nti_batch", *arguments, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        },
    )
    try:
        with job:
            try:
                yield job
            finally:
                job.kill()
    finally:
        hold.unlink()


def wait_for(path: Path, timeout: float = 240) -> None:
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} took more than {timeout} s"
        time.sleep(0.02)


def status_of(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the numbers of `nti-batch status`."""
    capsys.readouterr()
    assert main(["status", str(out), "--json"]) == 0
    numbers: dict[str, Any] = json.loads(capsys.readouterr().out)
    return numbers


def rows(out: Path) -> dict[str, InversionRow]:
    """Read the rows of a run by key; check that no image has two."""
    run = open_inversions(out)
    committed = [row for unit in units_of(run) for row in run.rows(unit)]
    # damaged shards have rows with an empty key
    keys = [row.key for row in committed if row.key]
    assert len(set(keys)) == len(keys)
    return {row.key: row for row in committed}


def expect_one_sentence(*words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a command has printed one line of error with these words."""
    error = capsys.readouterr().err
    assert all(word in error for word in words) and error.count("\n") == 1, error
