"""A folder of images with captions beside them: `cats/tom.jpg` and `cats/tom.txt` are the sample `cats/tom`.

Subfolders are read as well; links to folders are not followed. Names that begin with a dot, `__MACOSX`, and the output
folders of jobs are left out. A file whose extension is neither an image's nor `.txt` nor `.json` belongs to no sample.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jfif", "jpe", "png", "webp", "avif", "jp2", "bmp", "tif", "tiff", "gif")


MAX_IMAGE_BYTES = 1 << 30
"""Largest image file that is read; a small shard may unpack to more than memory."""


MAX_CAPTION_BYTES = 1 << 20
"""Largest file with a caption that is read."""


@dataclass(frozen=True, slots=True)
class FolderSample:
    """Files of one name: normally an image and its caption."""

    key: str
    """Path below the folder, without the extension."""

    files: tuple[str, ...]
    """Paths below the folder, sorted: images, `.txt` and `.json`."""


def extension_of(path: str) -> str:
    """Return the extension of a path in lower case, without the dot."""
    return os.path.splitext(path)[1][1:].lower()


def join_extensions(extensions: Iterable[str]) -> str:
    """List extensions for an error message."""
    return ", ".join(f".{extension}" for extension in extensions)


def list_folder(folder: str) -> tuple[list[FolderSample], list[tuple[str, str]]]:
    """List the samples of a folder; an image or a `.txt` makes a sample, a `.json` alone does not.

    Returns:
        The samples in the order of their keys, and the path and reason of each place that is not read.
    """
    files: dict[str, list[str]] = {}
    unread: list[tuple[str, str]] = []

    def add_unread(error: OSError) -> None:
        unread.append((os.path.relpath(error.filename, folder), f"cannot be read: {error.strerror}"))

    for parent, subfolders, names in os.walk(folder, onerror=add_unread):
        subfolders[:] = [name for name in subfolders if not (_is_hidden(name) or is_run_folder(f"{parent}/{name}"))]
        prefix = os.path.relpath(parent, folder) + os.sep if parent != folder else ""
        links = (prefix + name for name in subfolders if os.path.islink(os.path.join(parent, name)))
        unread += [(path, "is a link to a folder, which is not followed") for path in links]
        for name in names:
            if not _is_hidden(name) and extension_of(name) in (*IMAGE_EXTENSIONS, "txt", "json"):
                files.setdefault(_key(prefix + name), []).append(prefix + name)
    samples = [FolderSample(key, tuple(sorted(files[key]))) for key in sorted(files)]
    return [s for s in samples if {extension_of(path) for path in s.files} != {"json"}], sorted(unread)


def is_run_folder(folder: str) -> bool:
    """Return whether a folder is the output of a job, which is never taken for input."""
    return os.path.isfile(f"{folder}/run.json") and any(os.path.isdir(f"{folder}/{n}") for n in ("inversions", "edits"))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _key(path: str) -> str:
    """Path without the extension, in UTF-8, which the name of a file need not be."""
    return os.fsencode(os.path.splitext(path)[0]).decode(errors="backslashreplace")


def read_file(path: str, max_bytes: int) -> bytes:
    """Read a regular file.

    Raises:
        ValueError: If it is no regular file, cannot be read or has more than `max_bytes` bytes.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > max_bytes:
            raise ValueError(f"it has {status.st_size} bytes, and at most {max_bytes} are read")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
