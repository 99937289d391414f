"""A work unit belongs to one process at a time; the operating system takes a dead owner's claim away."""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

LOCK_TIMEOUT = 120.0
"""Seconds to wait for an earlier start of the same Slurm job: a file server keeps the locks of a node that vanished for
a while (NFSv4: 90 seconds)."""


class UnitInUseError(Exception):
    """Another job that still runs works on the same images."""


class UnitLock:
    """An advisory lock (flock(2)) on a file that says who holds it.

    It ends with its process, however that dies: nothing is stale. Nobody waits, but a requeued Slurm job for its own
    earlier start. Across nodes it needs a file system that passes locks on: NFS and GPFS do, Lustre when it is mounted
    with `flock`.
    """

    def __init__(self, path: Path, claimed: str = "") -> None:
        """Take the lock.

        Args:
            path: A file that need not be there.
            claimed: What it stands for, where that is no work unit.

        Raises:
            UnitInUseError: If a living process has it; the text says which.
        """
        self.path = path
        self._file = _open_current(path, claimed)
        self._file.seek(0)
        self._file.truncate()
        json.dump(_whoami(), self._file)
        self._file.flush()

    def release(self) -> None:
        """Give the lock back and leave no file."""
        with suppress(OSError):  # on a file system that has become read-only it stays, and says nothing
            self.path.unlink()
        self._file.close()


def _open_current(path: Path, claimed: str) -> IO[str]:
    """The locked file that `path` names; an owner that ended in between has taken its file away."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  # the lock lives as long as it is open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                file.seek(0)
                owner = file.read()
            if not _is_earlier_start(owner) or time.monotonic() > deadline:
                raise UnitInUseError(_in_use(path, owner, claimed)) from error
            time.sleep(0.5)
            continue
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _whoami() -> dict[str, str | int]:
    owner: dict[str, str | int] = {"host": socket.gethostname(), "process": os.getpid()}
    if job := os.environ.get("SLURM_JOB_ID"):
        owner["Slurm job"] = job
        owner["restarts"] = _restarts()
    return {**owner, "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _is_earlier_start(content: str) -> bool:
    """Whether an owner is this Slurm job, before it was requeued."""
    try:
        owner = json.loads(content)
        return bool(owner["Slurm job"] == os.environ.get("SLURM_JOB_ID") and owner["restarts"] < _restarts())
    except (ValueError, KeyError, TypeError):
        return False


def _in_use(path: Path, content: str, claimed: str) -> str:
    try:
        owner = ", ".join(f"{name} {value}" for name, value in json.loads(content).items())
    except ValueError:
        owner = "it has not said who it is"
    what = claimed or f"{path.stem!r} in {str(path.parent.parent)!r}"
    advice = "" if claimed else "; jobs that share a folder take a part each, with --data.part"
    return f"{what} is in use by another job ({owner}): wait until that job ends, or end it{advice}"
