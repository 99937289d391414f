"""Plans which images each shard of `nti-batch pack` holds; `pack.json` records the plan."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from nti_batch.data.image_list import FileSize, ImageList, ListedImage

MAX_SHARD_IMAGES = 10_000


MAX_SHARDS = 100_000
"""The nine digits of a key are five for the shard and four for the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLimits:
    """Largest size of a shard."""

    images: int
    bytes: int
    """Bytes of image files; a larger image is alone in its shard."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: If a limit is out of range.
        """
        if not 1 <= self.images <= MAX_SHARD_IMAGES:
            raise ValueError(f"--shard_images is {self.images}, allowed: 1 to {MAX_SHARD_IMAGES}")
        if self.bytes < 1:
            raise ValueError(f"--shard_bytes is {self.bytes}, allowed: at least 1")


@dataclass(frozen=True, slots=True)
class Outline:
    """Summary of a planned shard, for `pack.json`."""

    images: int
    """Number of images."""

    first: str
    """Path of the first image."""

    last: str
    """Path of the last image."""

    sha256: str
    """Checksum of the paths, captions in tables, sizes and times of change, all known without reading the images."""


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A shard of the plan: a slice of the list of images."""

    number: int
    images: list[ListedImage]
    outline: Outline

    @property
    def name(self) -> str:
        """File name of the tar, without '.tar'."""
        return f"{self.number:05d}"

    def key(self, index: int) -> str:
        """Return the key of the image at this index in the shard."""
        return f"{self.number:05d}{index:04d}"


@dataclass(frozen=True, slots=True)
class PackPlan:
    """The plan that `pack.json` records."""

    limits: ShardLimits
    outlines: list[Outline]

    def to_json(self) -> str:
        """Return the content of `pack.json`."""
        limits = {"images": self.limits.images, "bytes": self.limits.bytes}
        shards = [{"images": o.images, "first": o.first, "last": o.last, "sha256": o.sha256} for o in self.outlines]
        return json.dumps({"limits": limits, "shards": shards}, indent=1) + "\n"

    @classmethod
    def read(cls, file: Path) -> "PackPlan":
        """Read a `pack.json`.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            plan = json.loads(file.read_text(encoding="utf-8"))
            return cls(ShardLimits(**plan["limits"]), [Outline(**outline) for outline in plan["shards"]])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is damaged: {error}; remove its folder, and pack anew") from error

    def check_same(self, other: "PackPlan", out: Path) -> None:
        """Check that this command continues the pack in a folder.

        Args:
            other: Plan of the command.
            out: Folder that this plan was read from.

        Raises:
            ValueError: If the plans differ; the text names the first difference.
        """
        way_out = "; give the same, or another OUT"
        if self.limits != other.limits:
            raise ValueError(
                f"{str(out)!r} has shards of at most {self.limits.images} images and {self.limits.bytes} bytes, and "
                f"the command asks for {other.limits.images} and {other.limits.bytes}{way_out}"
            )
        before, now = (sum(outline.images for outline in plan.outlines) for plan in (self, other))
        for number, (old, new) in enumerate(zip_longest(self.outlines, other.outlines)):
            if old != new:
                raise ValueError(
                    f"{str(out)!r} was begun with another source, which had {before} images and has {now} now: shard "
                    f"{number:05d} held {_describe(old)}, and would hold {_describe(new)} now, with other paths, "
                    f"captions, sizes or times of change{way_out}"
                )


def _describe(outline: Outline | None) -> str:
    if outline is None:
        return "nothing"
    return f"{outline.images} images, {outline.first!r} to {outline.last!r}"


_SizedImage = tuple[ListedImage, tuple[FileSize, ...]]


def plan_shards(source: ImageList, limits: ShardLimits) -> list[PlannedShard]:
    """Cut the list of images where a shard would hold too many images or too many bytes.

    Raises:
        ValueError: If there are more shards than can be numbered.
    """
    shards = [
        PlannedShard(number, [image for image, _ in images], _outline(images))
        for number, images in enumerate(_cut(source, limits))
    ]
    if len(shards) > MAX_SHARDS:
        raise ValueError(f"there would be {len(shards)} shards, allowed: {MAX_SHARDS}; let a shard hold more")
    return shards


def _cut(source: ImageList, limits: ShardLimits) -> Iterator[list[_SizedImage]]:
    shard: list[_SizedImage] = []
    total = 0
    for image in source.images:
        sizes = source.sizes(image)
        size = sizes[0][0] if sizes and sizes[0] else 0
        if shard and (len(shard) == limits.images or total + size > limits.bytes):
            yield shard
            shard, total = [], 0
        shard.append((image, sizes))
        total += size
    yield shard


def _outline(images: Sequence[_SizedImage]) -> Outline:
    digest = hashlib.sha256()
    for image, sizes in images:
        known = (image.path, image.caption, image.caption_path, image.stage, image.error)
        digest.update(json.dumps([known, sizes]).encode())
    first, last = images[0][0], images[-1][0]
    return Outline(len(images), first.path, last.path, digest.hexdigest())
