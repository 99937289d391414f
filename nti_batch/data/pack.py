"""Packs images into input shards, with img2dataset's names.

    OUT/pack.json          the limits of a shard, and what each is to hold: another source is refused
    OUT/00000.tar          000000000.jpg, 000000000.json and 000000000.txt of each image: shard and index in the shard
    OUT/00000_stats.json   how many images the shard was to hold and holds, and what was not packed and why

A shard is a slice of the list of images, whoever packs it and when, and its bytes depend on the images and captions
alone. It is finished once its `_stats.json` is there, and what is finished is not packed again.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from webdataset.writer import TarWriter

from nti_batch.data.folder import extension_of
from nti_batch.data.image_list import ImageList, NotPackedError
from nti_batch.data.pack_plan import PlannedShard, ShardLimits, _read_plan, _refuse_other_plan, plan_shards
from nti_batch.files import atomic_open, atomic_write, translate_os_errors
from nti_batch.lock import UnitLock


class StoppedError(Exception):
    """A stop was asked for."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that is in no shard."""

    path: str
    stage: str
    error: str


@dataclass(frozen=True, slots=True)
class ShardStats:
    """What became of the images of a shard; the first two are called as img2dataset calls them."""

    count: int
    successes: int
    failures: tuple[Skipped, ...]

    @classmethod
    def read(cls, path: Path) -> "ShardStats":
        """Of a finished shard.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**found, "failures": tuple(Skipped(**failure) for failure in found["failures"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged: {error}; remove it, and run again") from error


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
            with translate_os_errors(file):
                atomic_write(file, json.dumps(plan, indent=1) + "\n")

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
        failures: list[Skipped] = []
        members = self._members(shard, failures, stopped)
        with translate_os_errors(tar):
            # a tar without any image would be a damaged shard to whoever reads it
            if first := next(members, None):
                with atomic_open(tar) as file, TarWriter(file, encoder=False, mtime=0) as writer:
                    for member in chain([first], members):
                        writer.write(member)
            stats = ShardStats(len(shard.images), len(shard.images) - len(failures), tuple(failures))
            atomic_write(stats_file, json.dumps(dataclasses.asdict(stats)) + "\n")
        return stats

    def _members(
        self, shard: PlannedShard, failures: list[Skipped], stopped: Callable[[], bool]
    ) -> Iterator[dict[str, str | bytes]]:
        """The members of each image that can be packed, by their endings; fills `failures` with the others."""
        for index, image in enumerate(shard.images):
            if stopped():
                raise StoppedError
            try:
                content, caption = self.source.load(image)
            except NotPackedError as error:
                failures.append(Skipped(image.path, error.stage, error.reason))
                continue
            key = shard.key(index)
            told = {"caption": caption, "key": key, "path": image.path}
            yield {
                "__key__": key,
                extension_of(image.path): content,
                "json": json.dumps(told).encode(),
                "txt": caption.encode(),
            }
