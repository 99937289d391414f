"""Atomic writes: a file appears whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, text: str) -> None:
    """Write a file that readers find whole or not at all; a power cut may lose it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


@contextmanager
def atomic_open(path: Path, ending: str = ".tmp") -> Iterator[BinaryIO]:
    """Open a file that appears whole at the end of the block, or not at all, and then survives a power cut.

    Args:
        path: File to write.
        ending: Suffix of the unfinished file beside it.
    """
    beside = path.with_name(path.name + ending)
    with open(beside, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def atomic_write(path: Path, content: str | bytes, ending: str = ".tmp") -> None:
    """Write a file that appears whole or not at all, and then survives a power cut."""
    with atomic_open(path, ending) as file:
        file.write(content.encode() if isinstance(content, str) else content)


class OutputError(Exception):
    """The output folder cannot be written."""


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one that names the file and the way out.

    Raises:
        OutputError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; what is committed stays readable: "
            "make room or mend the folder, and run the same command again"
        ) from error


def check_writable(folder: Path) -> None:
    """Check, without writing, that a folder and a file in it can be created.

    Raises:
        OSError: The error that creating them would raise, as far as it can be known.
    """
    ancestor = existing_ancestor(folder)
    if not ancestor.is_dir():
        raise OSError(code := errno.EEXIST if ancestor == folder else errno.ENOTDIR, os.strerror(code))
    if not os.access(ancestor, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(ancestor).f_flag & os.ST_RDONLY
        raise OSError(code := errno.EROFS if is_read_only else errno.EACCES, os.strerror(code))


def existing_ancestor(path: Path) -> Path:
    """Return the path itself, or its nearest parent that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())
