"""A lock that gives a work unit to one process at a time; the operating system frees it when its owner dies."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from nti_batch.files import OutputError

LOCK_TIMEOUT = 120.0
"""Seconds to wait for an earlier start of the same Slurm job: a file server keeps the locks of a vanished node for a
while (NFSv4: 90 seconds)."""


class UnitInUseError(Exception):
    """Another running job works on the same images."""


class UnitLock:
    """An advisory lock (flock(2)) on a file that names its holder.

    The lock ends with its process, however that dies, so it is never stale. A lock that is held raises at once; only a
    requeued Slurm job waits for its own earlier start. Several nodes need a file system that shares locks: NFS and GPFS
    do, Lustre if it is mounted with `flock`.
    """

    def __init__(self, path: Path, resource: str = "") -> None:
        """Take the lock.

        Args:
            path: File to lock; it is created if it does not exist.
            resource: Name of what the lock protects, for error messages; empty for a work unit.

        Raises:
            UnitInUseError: If a living process holds the lock; the text names it.
            OutputError: If the file system has no locks.
            OSError: If the file cannot be made.
        """
        self.path = path
        self._file = _open_current(path, resource)
        self._file.seek(0)
        self._file.truncate()
        json.dump(whoami(), self._file)
        self._file.flush()

    def release(self) -> None:
        """Release the lock and remove its file."""
        with suppress(OSError):  # the file stays on a file system that has become read-only
            self.path.unlink()
        self._file.close()


@contextmanager
def lock_folder(folder: Path, name: str, argument: str) -> Iterator[None]:
    """Create a folder, and hold its lock.

    Args:
        folder: Folder to write to.
        name: File name of the lock.
        argument: Argument of the command that names the folder, for error messages.

    Raises:
        ValueError: If the folder cannot be written.
        UnitInUseError: If another process holds the lock.
        OutputError: If the file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = UnitLock(folder / name, resource=f"output folder {str(folder)!r}")
    except OSError as error:
        raise ValueError(
            f"output folder {str(folder)!r} cannot be written: {error.strerror}; give another {argument}"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def exclusive(path: Path) -> Iterator[IO[str]]:
    """Hold a lock for a moment, in which one process reads, changes and writes a file; others wait for their turn.

    The block gets the lock's own file, to read and to append to.
    """
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise _no_locks(path, error) from error
        yield file


def is_locked(path: Path) -> bool:
    """Whether another process holds `exclusive` of a file; False also if there are no locks."""
    with suppress(OSError), open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _open_current(path: Path, resource: str) -> IO[str]:
    """Open and lock the file that `path` names, again if its last owner has removed it in between."""
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
                raise UnitInUseError(_in_use(path, owner, resource)) from error
            time.sleep(0.5)
            continue
        except OSError as error:
            file.close()
            raise _no_locks(path, error) from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def whoami() -> dict[str, str | int]:
    """This process, as the file of a lock names it."""
    owner: dict[str, str | int] = {"host": socket.gethostname(), "process": os.getpid()}
    if job := os.environ.get("SLURM_JOB_ID"):
        owner["Slurm job"] = job
        owner["restarts"] = _restarts()
    return {**owner, "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _restarts() -> int:
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def _is_earlier_start(content: str) -> bool:
    """Return whether the content of a lock file names this Slurm job before it was requeued."""
    try:
        owner = json.loads(content)
        return bool(owner["Slurm job"] == os.environ.get("SLURM_JOB_ID") and owner["restarts"] < _restarts())
    except (ValueError, KeyError, TypeError):
        return False


def describe_owner(content: str) -> str:
    """What `whoami` gave, as a message shows it."""
    try:
        return ", ".join(f"{name} {value}" for name, value in json.loads(content).items() if name != "disk")
    except (ValueError, AttributeError):
        return "its lock file does not name it"


def _in_use(path: Path, content: str, resource: str) -> str:
    name = resource or f"{path.stem!r} in {str(path.parent.parent)!r}"
    advice = "" if resource else "; jobs that share a folder take a part each, with --data.part"
    return f"{name} is in use by another job ({describe_owner(content)}): wait until that job ends, or end it{advice}"


def _no_locks(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be locked: {error.strerror}: the file system does not support flock(2), which keeps two jobs "
        "apart; mount it with locks (Lustre: -o flock; NFS: version 4), or write to another folder"
    )
