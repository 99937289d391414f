"""A folder of images with captions beside them: `cats/tom.jpg` and `cats/tom.txt` are the sample `cats/tom`.

Subfolders are read as well; links to folders are not followed. Names that begin with a dot, `__MACOSX`, and the output
folders of jobs are left out. A file whose extension is neither an image's nor `.txt` nor `.json` is in no sample.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jfif", "jpe", "png", "apng", "webp", "avif", "heic", "heif", "hif", "jp2", "j2k", "jpx", "jpf"),
    *("bmp", "dib", "tif", "tiff", "gif", "ppm", "pgm", "pbm", "pnm"),
)


MAX_IMAGE_BYTES = 1 << 29
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


@dataclass(frozen=True, slots=True)
class FolderListing:
    """Content of a folder."""

    samples: list[FolderSample]
    """In the order of their keys."""

    unread: list[tuple[str, str]]
    """Path and reason of each place that cannot be read."""

    others: Counter[str]
    """Number of files that are in no sample, by extension."""

    def describe_others(self) -> str:
        """Count the files that are in no sample, for a person to read; empty if there are none."""
        if not self.others:
            return ""
        kinds = ((f".{extension}" if extension else "no ending", count) for extension, count in self.others.items())
        counts = ", ".join(f"{count} with {kind}" for kind, count in sorted(kinds))
        return f"{self.others.total()} files are neither images nor captions: {counts}"


def extension_of(path: str) -> str:
    """Return the extension of a path in lower case, without the dot."""
    return os.path.splitext(path)[1][1:].lower()


def join_extensions(extensions: Iterable[str]) -> str:
    """List extensions for an error message."""
    return ", ".join(f".{extension}" for extension in extensions)


def list_folder(folder: str, caption: str) -> FolderListing:
    """List the samples of a folder: each has an image, a caption or both.

    Args:
        folder: Path of the folder.
        caption: Extension of the captions, 'txt' or 'json'.
    """
    files: dict[str, list[str]] = {}
    unread: list[tuple[str, str]] = []
    others = Counter[str]()

    def add_unread(error: OSError) -> None:
        unread.append((os.path.relpath(error.filename, folder), f"cannot be read: {error.strerror}"))

    for parent, subfolders, names in os.walk(folder, onerror=add_unread):
        subfolders[:] = [name for name in subfolders if not (_is_hidden(name) or is_run_folder(f"{parent}/{name}"))]
        prefix = os.path.relpath(parent, folder) + os.sep if parent != folder else ""
        links = (prefix + name for name in subfolders if os.path.islink(os.path.join(parent, name)))
        unread += [(path, "is a link to a folder, which is not followed") for path in links]
        for name in names:
            if _is_hidden(name):
                continue
            if extension_of(name) in (*IMAGE_EXTENSIONS, "txt", "json"):
                files.setdefault(_key(prefix + name), []).append(prefix + name)
            else:
                others[extension_of(name)] += 1
    samples = []
    for key, paths in sorted(files.items()):
        if all(extension_of(path) not in (*IMAGE_EXTENSIONS, caption) for path in paths):
            others.update(map(extension_of, paths))
        else:
            samples.append(FolderSample(key, tuple(sorted(paths))))
    return FolderListing(samples, sorted(unread), others)


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
