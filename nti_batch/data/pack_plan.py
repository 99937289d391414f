"""Which images each shard of `nti-batch pack` holds, and the file that records it."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from nti_batch.data.image_list import ImageList, ListedImage

MOST_IMAGES = 10_000


MOST_SHARDS = 100_000
"""What the nine digits of a key can count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLimits:
    """When a shard is full."""

    images: int
    bytes: int
    """Of image files; a larger image is alone in its shard."""

    def __post_init__(self) -> None:
        """Raise a ValueError if one is out of range."""
        if not 1 <= self.images <= MOST_IMAGES:
            raise ValueError(f"--shard-images is {self.images}, allowed: 1 to {MOST_IMAGES}")
        if self.bytes < 1:
            raise ValueError(f"--shard-bytes is {self.bytes}, allowed: at least 1")


@dataclass(frozen=True, slots=True)
class Outline:
    """What a shard is to hold, for `pack.json`."""

    images: int
    first: str
    last: str
    """Paths of the first and the last image."""

    sha256: str
    """Of what is known of the images without reading them: paths, captions in tables, sizes, times of change."""


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A slice of the list of images."""

    number: int
    images: list[ListedImage]
    outline: Outline

    @property
    def name(self) -> str:
        """Of its tar, without the ending."""
        return f"{self.number:05d}"

    def key(self, index: int) -> str:
        """Of one of its images."""
        return f"{self.number:05d}{index:04d}"


def plan_shards(source: ImageList, limits: ShardLimits) -> list[PlannedShard]:
    """Cut the list where a shard would hold too many images or too many bytes.

    Raises:
        ValueError: If there are more shards than can be numbered.
    """
    shards: list[PlannedShard] = []
    images: list[ListedImage] = []
    digest, total = hashlib.sha256(), 0

    def close() -> None:
        outline = Outline(len(images), images[0].path, images[-1].path, digest.hexdigest())
        shards.append(PlannedShard(len(shards), images, outline))

    for image in source.images:
        sizes = source.sizes(image)
        size = sizes[0][0] if sizes and sizes[0] else 0
        if images and (len(images) == limits.images or total + size > limits.bytes):
            close()
            images, digest, total = [], hashlib.sha256(), 0
        images.append(image)
        digest.update(json.dumps([dataclasses.astuple(image), sizes]).encode())
        total += size
    close()
    if len(shards) > MOST_SHARDS:
        raise ValueError(f"there would be {len(shards)} shards, allowed: {MOST_SHARDS}; let a shard hold more")
    return shards


Plan = tuple[ShardLimits, list[Outline]]


def _read_plan(file: Path) -> Plan:
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
        return ShardLimits(**plan["limits"]), [Outline(**outline) for outline in plan["shards"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged: {error}; remove its folder, and pack anew") from error


def _refuse_other_plan(out: Path, known: Plan, asked: Plan) -> None:
    (known_limits, known_shards), (limits, shards) = known, asked
    way_out = "; give the same, or another OUT"
    if known_limits != limits:
        raise ValueError(
            f"{str(out)!r} has shards of at most {known_limits.images} images and {known_limits.bytes} bytes, asked "
            f"are {limits.images} and {limits.bytes}{way_out}"
        )
    counts = [sum(outline.images for outline in outlines) for outlines in (known_shards, shards)]
    for number, (there, now) in enumerate(zip_longest(known_shards, shards)):
        if there != now:
            raise ValueError(
                f"{str(out)!r} was begun with another source, of {counts[0]} images there and {counts[1]} now: shard "
                f"{number:05d} {_told(there)} there, and {_told(now)} now, with other paths, captions, sizes or times "
                f"of change{way_out}"
            )


def _told(outline: Outline | None) -> str:
    if outline is None:
        return "is not"
    return f"has {outline.images} images, {outline.first!r} to {outline.last!r},"
