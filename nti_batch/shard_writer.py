"""Packs images into input shards, with img2dataset's names.

    OUT/pack.json          the limits of a shard, and what each is to hold: another source is refused
    OUT/00000.tar          000000000.jpg, 000000000.json and 000000000.txt of each image: shard and index in the shard
    OUT/00000_stats.json   how many images the shard was to hold and holds, and what was not packed and why

A shard is a slice of the list of images, whoever packs it and when, and its bytes depend on the images and captions
alone. It is finished once its `_stats.json` is there, and what is finished is not packed again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path

from webdataset.writer import TarWriter

from nti_batch.folder import extension_of
from nti_batch.image_list import ImageList, ListedImage, NotPackedError
from nti_batch.lock import UnitLock
from nti_batch.parts import appearing, named, write_whole

MOST_IMAGES = 10_000
MOST_SHARDS = 100_000
"""What the nine digits of a key can count."""


class StoppedError(Exception):
    """A stop was asked for."""


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
class Unpacked:
    """An image that is in no shard."""

    path: str
    stage: str
    error: str


@dataclass(frozen=True, slots=True)
class ShardStats:
    """What became of the images of a shard; the first two are called as img2dataset calls them."""

    count: int
    successes: int
    failures: tuple[Unpacked, ...]

    @classmethod
    def read(cls, path: Path) -> "ShardStats":
        """Of a finished shard.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**found, "failures": tuple(Unpacked(**failure) for failure in found["failures"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged: {error}; remove it, and run again") from error


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


class ShardWriter:
    """Packs a list of images into an output folder."""

    def __init__(self, source: ImageList, out: Path, limits: ShardLimits, workers: int) -> None:
        """Plan the shards; nothing is written yet.

        Args:
            source: What to pack.
            out: The output folder.
            limits: When a shard is full.
            workers: Shards that are written at a time.

        Raises:
            ValueError: If there are no workers, or more shards than can be numbered.
        """
        if workers < 1:
            raise ValueError(f"--workers is {workers}, allowed: at least 1")
        self.source, self.out, self.limits, self.workers = source, out, limits, workers
        self.shards = plan_shards(source, limits)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the output folder, begun now or before with the same source and limits.

        Raises:
            ValueError: If the folder cannot be written, or holds something else.
            UnitInUseError: If another process packs into it.
            OutputError: If the disk is full.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            lock = UnitLock(self.out / "pack.lock", claimed=f"output folder {str(self.out)!r}")
        except OSError as error:
            raise ValueError(
                f"output folder {str(self.out)!r} cannot be written: {error.strerror}; give another OUT"
            ) from error
        try:
            self._begin(self.out / "pack.json")
            yield
        finally:
            lock.release()

    def _begin(self, file: Path) -> None:
        outlines = [shard.outline for shard in self.shards]
        if file.exists():
            _refuse_other_plan(self.out, _read_plan(file), (self.limits, outlines))
        elif any(self.out.glob("*.tar")):
            raise ValueError(f"{str(self.out)!r} holds tars and no {file.name}: give an empty folder as OUT")
        else:
            plan = {"limits": dataclasses.asdict(self.limits), "shards": [dataclasses.asdict(o) for o in outlines]}
            with named(file):
                write_whole(file, json.dumps(plan, indent=1) + "\n")

    def write(self, stopped: Callable[[], bool]) -> Iterator[ShardStats]:
        """Finish every shard, and give its statistics, in order.

        Args:
            stopped: Asked before each image.

        Raises:
            StoppedError: If a stop was asked for.
            OutputError: If the folder cannot be written.
            ValueError: If the statistics of a finished shard are damaged.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(partial(self._finish, stopped=stopped), self.shards)

    def _finish(self, shard: PlannedShard, stopped: Callable[[], bool]) -> ShardStats:
        tar, stats_file = self.out / f"{shard.name}.tar", self.out / f"{shard.name}_stats.json"
        if stats_file.exists():
            stats = ShardStats.read(stats_file)
            if tar.exists() or not stats.successes:
                return stats
        failures: list[Unpacked] = []
        members = self._members(shard, failures, stopped)
        with named(tar):
            # a tar without any image would be a damaged shard to whoever reads it
            if first := next(members, None):
                with appearing(tar) as file, TarWriter(file, encoder=False, mtime=0) as writer:
                    for member in chain([first], members):
                        writer.write(member)
            stats = ShardStats(len(shard.images), len(shard.images) - len(failures), tuple(failures))
            write_whole(stats_file, json.dumps(dataclasses.asdict(stats)) + "\n")
        return stats

    def _members(
        self, shard: PlannedShard, failures: list[Unpacked], stopped: Callable[[], bool]
    ) -> Iterator[dict[str, str | bytes]]:
        """The members of each image that can be packed, by their endings; fills `failures` with the others."""
        for index, image in enumerate(shard.images):
            if stopped():
                raise StoppedError
            try:
                content, caption = self.source.load(image)
            except NotPackedError as error:
                failures.append(Unpacked(image.path, error.stage, error.reason))
                continue
            key = shard.key(index)
            told = {"caption": caption, "key": key, "path": image.path}
            yield {
                "__key__": key,
                extension_of(image.path): content,
                "json": json.dumps(told).encode(),
                "txt": caption.encode(),
            }


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
