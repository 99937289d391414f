"""Lists the images to pack: those of a folder, or of a table of paths and captions."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nti_batch.data.folder import (
    IMAGE_EXTENSIONS,
    MAX_CAPTION_BYTES,
    MAX_IMAGE_BYTES,
    FolderListing,
    FolderSample,
    extension_of,
    list_folder,
    read_file,
)
from nti_batch.data.samples import read_caption
from nti_batch.data.tables import Line, csv_lines, json_lines, parquet_lines

TABLES = (".csv", ".jsonl", ".parquet")


class NotPackedError(Exception):
    """An image that cannot be packed."""

    def __init__(self, stage: str, reason: str) -> None:
        """Describe the failure.

        Args:
            stage: 'image', 'caption', 'folder' or 'line'.
            reason: Cause, for a person to read.
        """
        super().__init__(reason)
        self.stage, self.reason = stage, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """An entry of the source: an image, or an entry that names no usable image."""

    path: str
    """Path as the source has it: relative to the source's folder, or absolute."""

    caption: str = ""
    """Caption from a table."""

    caption_path: str = ""
    """File that holds the caption; empty if it comes from a table."""

    stage: str = ""
    """Stage at which the entry has already failed; empty if all is well so far."""

    error: str = ""
    """Reason of that failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns of a table."""

    path: str
    caption: str


FileSize = tuple[int, int] | None
"""Bytes of a file and the time of its last change in nanoseconds; None if there is no such file."""


@dataclass(frozen=True, slots=True)
class ImageList:
    """The images of a source, in the order of their paths without extensions."""

    root: Path
    """Folder that relative paths start from."""

    images: list[ListedImage]

    note: str = ""
    """What else the folder holds, for a person to read; empty if nothing."""

    def sizes(self, image: ListedImage) -> tuple[FileSize, ...]:
        """Look up the sizes of an image's files, the image first; an image that has failed has none."""
        return tuple(self._size(path) for path in (image.path, image.caption_path) if path and not image.error)

    def _size(self, path: str) -> FileSize:
        try:
            status = os.stat(self.root / path)
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def load(self, image: ListedImage) -> tuple[bytes, str]:
        """Read the content of an image file, unchanged, and its caption.

        Raises:
            NotPackedError: If one of them cannot be read.
        """
        if image.error:
            raise NotPackedError(image.stage, image.error)
        stage, path = "image", image.path
        try:
            content = read_file(os.path.join(self.root, path), MAX_IMAGE_BYTES)
            stage, path = "caption", image.caption_path
            caption = read_file(os.path.join(self.root, path), MAX_CAPTION_BYTES) if path else image.caption.encode()
            return content, read_caption(caption)
        except ValueError as error:
            raise NotPackedError(stage, str(error)) from error


def list_images(source: Path, columns: Columns, default_caption: str | None = None) -> ImageList:
    """List the images of a folder or a table; a table's relative paths start from the table's folder.

    Args:
        source: The folder or the table.
        columns: Columns of the table.
        default_caption: Caption of the images without one; None makes them failures.

    Raises:
        ValueError: If the source is neither, cannot be read, lacks a column or lists nothing.
    """
    note = ""
    if source.is_dir():
        listing = list_folder(str(source), "txt")
        root, images, note = source, _images_of_folder(listing, default_caption), listing.describe_others()
    elif source.suffix.lower() in TABLES and source.is_file():
        root, images = source.parent, _images_of_table(source, columns, default_caption)
    else:
        raise ValueError(
            f"source {str(source)!r} is neither a folder nor a table that ends in {', '.join(TABLES)}, seen from "
            f"{os.getcwd()!r}"
        )
    if not images:
        raise ValueError(f"source {str(source)!r} lists no images; images end in {', '.join(IMAGE_EXTENSIONS)}")
    return ImageList(root, sorted(images, key=lambda image: (os.path.splitext(image.path)[0], image.path)), note)


def _images_of_folder(listing: FolderListing, default_caption: str | None) -> list[ListedImage]:
    failed = [ListedImage(path=path, stage="folder", error=f"it {reason}") for path, reason in listing.unread]
    return failed + [_image_of_sample(sample, default_caption) for sample in listing.samples]


def _image_of_sample(sample: FolderSample, default_caption: str | None) -> ListedImage:
    images = [path for path in sample.files if extension_of(path) in IMAGE_EXTENSIONS]
    captions = [path for path in sample.files if extension_of(path) == "txt"]
    if not images:
        return ListedImage(path=captions[0], stage="image", error="there is no image of this name")
    if len(images) > 1:
        return ListedImage(path=images[0], stage="image", error=f"it shares its name with {', '.join(images[1:])}")
    if not captions and default_caption is not None:
        return ListedImage(path=images[0], caption=default_caption)
    if len(captions) != 1:
        names = ", ".join(captions)
        reason = f"there are several captions of its name: {names}" if captions else "there is no .txt of its name"
        return ListedImage(path=images[0], stage="caption", error=reason)
    return ListedImage(path=images[0], caption_path=captions[0])


def _images_of_table(table: Path, columns: Columns, default_caption: str | None) -> list[ListedImage]:
    names: set[str] = set()
    images = []
    try:
        for number, cells in _lines(table, columns):
            if isinstance(cells, ValueError):
                images.append(ListedImage(path=f"line {number}", stage="line", error=str(cells)))
            else:
                names.update(cells)
                caption = cells.get(columns.caption)
                images.append(
                    _image_of_line(number, cells.get(columns.path), default_caption if caption is None else caption)
                )
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"source {str(table)!r} cannot be read: {error}") from error
    for flag, name in (("--path_column", columns.path), ("--caption_column", columns.caption)):
        if names and name not in names:
            raise ValueError(f"source {str(table)!r} has no column {name!r} among {sorted(names)}: give {flag}")
    return images


def _lines(table: Path, columns: Columns) -> Iterator[Line]:
    match table.suffix.lower():
        case ".csv":
            return csv_lines(table)
        case ".jsonl":
            return json_lines(table)
    return parquet_lines(table, (columns.path, columns.caption))


def _image_of_line(number: int, path: object, caption: object) -> ListedImage:
    if not isinstance(path, str) or not path:
        return ListedImage(path=f"line {number}", stage="line", error=f"its path is {path!r}, not a text")
    if extension_of(path) not in IMAGE_EXTENSIONS:
        return ListedImage(path=path, stage="image", error=f"images end in {', '.join(IMAGE_EXTENSIONS)}")
    if os.path.normpath(path).startswith(".."):
        return ListedImage(path=path, stage="image", error="it leads out of the table's folder; write an absolute path")
    if not isinstance(caption, str):
        reason = "it has no caption" if caption is None else f"its caption is {caption!r}, not a text"
        return ListedImage(path=path, stage="caption", error=reason)
    return ListedImage(path=path, caption=caption)
