"""Files that are written whole or not at all, and files that are read only if they are small enough."""

import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears whole at the end of the block, or not at all, and then survives a power cut."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):  # a full disk has more room without it
            beside.unlink()
        raise
    sync_folder(path.parent)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all, and then survives a power cut."""
    with atomic_open(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def read_bounded(path: Path, most: int) -> bytes:
    """Read a file that may come from somebody else.

    Args:
        path: File to read.
        most: Largest size in bytes.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no regular file, or larger.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise ValueError(f"it has {size:,} bytes, allowed: at most {most:,}")
        return file.read(most)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file that may come from somebody else for reading.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is a device, or a named pipe, which would wait for a writer.
    """
    # the caller closes it
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        raise ValueError("it is no regular file")
    return file


def store_address(path: Path | str) -> str | None:
    """The address in an object store that a path or text names, such as 's3://bucket/run'; None for a local path."""
    # a Path has joined the two slashes behind the scheme
    found = re.fullmatch(r"(s3|gs|az):/+([^/].*)", str(path))
    return f"{found[1]}://{found[2].rstrip('/')}" if found else None


STORE_ADDRESSES = "an address in an object store (s3://, gs://, az://), "


def refuse_url(flag: str, path: Path | str, others: str = "") -> None:
    """Check that a path does not name a place on the network.

    Args:
        flag: Name of the flag.
        path: The path.
        others: What is allowed besides, for the error message.

    Raises:
        ValueError: If it has a scheme, as in 's3://bucket/run'; the text names the flag.
    """
    # a Path has joined the two slashes behind the scheme
    scheme, colon, rest = str(path).partition(":/")
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ValueError(
            f"{flag} is '{scheme}://{rest.lstrip('/')}', allowed: {others}a local path, such as a mounted "
            "folder, or the absolute path of a folder whose name ends in a colon"
        )


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


def check_new_file(flag: str, path: Path) -> None:
    """Check, without writing, that a file can be written.

    Raises:
        ValueError: If it cannot, as far as that can be known; the text names the flag.
    """
    try:
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not path.parent.exists():
            raise OSError(errno.ENOENT, f"there is no folder {str(path.parent)!r}")
        check_writable(path.parent)
        path.with_name(path.name + ".tmp").exists()  # raises for a name that is too long
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}; give another {flag}") from error


def existing_ancestor(path: Path) -> Path:
    """Return the path itself, or its nearest parent that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())
