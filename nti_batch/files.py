"""Atomic writes."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, text: str) -> None:
    """Write a file that readers find whole or not at all; a power cut may take it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


@contextmanager
def atomic_open(path: Path, ending: str = ".tmp") -> Iterator[BinaryIO]:
    """A file to write that appears whole or not at all, and survives a power cut once it has appeared."""
    beside = path.with_name(path.name + ending)
    with open(beside, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def atomic_write(path: Path, content: str | bytes, ending: str = ".tmp") -> None:
    """Write a file that appears whole or not at all, and survives a power cut once it has appeared."""
    with atomic_open(path, ending) as file:
        file.write(content.encode() if isinstance(content, str) else content)


class OutputError(Exception):
    """The output folder cannot be written."""


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Say which file an error of the operating system is about, and what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; what is committed stays readable: "
            "make room or mend the folder, and run the same command again"
        ) from error


def check_writable(folder: Path) -> None:
    """Raise the OSError that making this folder and a file there would, as far as that is known without trying."""
    there = existing_ancestor(folder)
    if not there.is_dir():
        raise OSError(code := errno.EEXIST if there == folder else errno.ENOTDIR, os.strerror(code))
    if not os.access(there, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        raise OSError(code := errno.EROFS if is_read_only else errno.EACCES, os.strerror(code))


def existing_ancestor(path: Path) -> Path:
    """The path itself, or what there is of the way to it."""
    return next(there for there in (path, *path.parents) if there.exists())
