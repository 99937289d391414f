"""A folder of images with captions beside them: `cats/tom.jpg` and `cats/tom.txt` are the sample `cats/tom`.

Folders below it are read, too; links to folders are not followed. What begins with a dot, and `__MACOSX`, is not the
user's. Files with other endings than those below belong to no sample.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")


LARGEST_IMAGE = 1 << 30


LARGEST_CAPTION = 1 << 20
"""Bytes of a member or file that are read; a small shard may unpack to more than memory."""


@dataclass(frozen=True, slots=True)
class FolderSample:
    """The files of one name: an image and its caption, where all is well."""

    key: str
    """Path below the folder, without the ending."""

    files: tuple[str, ...]
    """Paths below the folder, sorted: of images, of a `.txt` and of a `.json`."""


def extension_of(path: str) -> str:
    """Ending of a path in small letters, without the dot."""
    return os.path.splitext(path)[1][1:].lower()


def join_extensions(extensions: Iterable[str]) -> str:
    """Extensions as an error message lists them."""
    return ", ".join(f".{extension}" for extension in extensions)


def list_folder(folder: str) -> tuple[list[FolderSample], list[tuple[str, str]]]:
    """The samples of a folder in the order of their keys, and each place below it that is not read, with the reason.

    An image or a `.txt` makes a sample, a `.json` alone does not.
    """
    files: dict[str, list[str]] = {}
    unread: list[tuple[str, str]] = []

    def note(error: OSError) -> None:
        unread.append((os.path.relpath(error.filename, folder), f"cannot be read: {error.strerror}"))

    for here, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if _is_users(name)]
        below = os.path.relpath(here, folder) + os.sep if here != folder else ""
        links = (below + name for name in folders if os.path.islink(os.path.join(here, name)))
        unread += [(path, "is a link to a folder, which is not followed") for path in links]
        for name in names:
            if _is_users(name) and extension_of(name) in (*IMAGE_EXTENSIONS, "txt", "json"):
                # a name need not be UTF-8, and a key must be
                key = os.fsencode(below + os.path.splitext(name)[0]).decode(errors="backslashreplace")
                files.setdefault(key, []).append(below + name)
    samples = [FolderSample(key, tuple(sorted(files[key]))) for key in sorted(files)]
    return [s for s in samples if {extension_of(path) for path in s.files} != {"json"}], sorted(unread)


def _is_users(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def fingerprint(samples: Sequence[FolderSample]) -> str:
    """What tells whether samples have come, gone or been renamed."""
    digest = hashlib.sha256("\0".join(sample.key for sample in samples).encode())
    return f"{len(samples)} samples, sha256 {digest.hexdigest()[:16]}"


def read_file(path: str, most: int) -> bytes:
    """The content of a file.

    Raises:
        ValueError: If it is no file, cannot be read or has more than `most` bytes.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        if found.st_size > most:
            raise ValueError(f"it has {found.st_size} bytes, and at most {most} are read")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
