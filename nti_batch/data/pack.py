"""Packs images into input shards, with img2dataset's names.

    OUT/pack.json          the limits of a shard, and an outline of each shard; another source is refused
    OUT/00000.tar          000000000.jpg, 000000000.json and 000000000.txt of each image: shard and index in the shard
    OUT/00000_stats.json   the number of images planned and packed, and each image that was skipped, with the reason

A shard is a slice of the list of images, and its bytes depend on the images and captions alone. A shard is finished
once its `_stats.json` exists; a finished shard is not packed again.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nti_batch.data.folder import extension_of
from nti_batch.data.image_list import ImageList, NotPackedError
from nti_batch.data.pack_plan import PackPlan, PlannedShard, ShardLimits, plan_shards
from nti_batch.data.tar import write_samples
from nti_batch.files import atomic_write, translate_os_errors
from nti_batch.lock import lock_folder


class StoppedError(Exception):
    """The user asked the pack to stop."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that is in no shard."""

    path: str
    stage: str
    """Where it failed: 'image', 'caption', 'folder' or 'line'."""

    error: str
    """Reason, for a person to read."""


@dataclass(frozen=True, slots=True)
class ShardStats:
    """Outcome of a finished shard; `count` and `successes` are img2dataset's names."""

    count: int
    successes: int
    failures: tuple[Skipped, ...]

    @classmethod
    def read(cls, path: Path) -> "ShardStats":
        """Read the statistics of a finished shard.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            stats = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**stats, "failures": tuple(Skipped(**failure) for failure in stats["failures"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged: {error}; remove it, and run again") from error

    def to_json(self) -> str:
        """Return the content of `_stats.json`."""
        failures = [{"path": image.path, "stage": image.stage, "error": image.error} for image in self.failures]
        return json.dumps({"count": self.count, "successes": self.successes, "failures": failures}) + "\n"


class ShardWriter:
    """Packs a list of images into an output folder."""

    def __init__(self, source: ImageList, out: Path, limits: ShardLimits, workers: int) -> None:
        """Plan the shards, and write nothing yet.

        Args:
            source: Images to pack.
            out: Output folder.
            limits: Largest size of a shard.
            workers: Number of shards that are written at a time.

        Raises:
            ValueError: If there are no workers, or more shards than can be numbered.
        """
        if workers < 1:
            raise ValueError(f"--workers is {workers}, allowed: at least 1")
        self.source, self.out, self.workers = source, out, workers
        self.shards = plan_shards(source, limits)
        self.plan = PackPlan(limits, [shard.outline for shard in self.shards])

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the lock of the output folder, which is new or was begun with the same plan.

        Raises:
            ValueError: If the folder cannot be written, or holds another pack.
            UnitInUseError: If another process packs into it.
            OutputError: If the disk is full.
        """
        with lock_folder(self.out, "pack.lock", "OUT"):
            self._record_plan(self.out / "pack.json")
            yield

    def _record_plan(self, file: Path) -> None:
        if file.exists():
            PackPlan.read(file).check_same(self.plan, self.out)
        elif any(self.out.glob("*.tar")):
            raise ValueError(f"{str(self.out)!r} holds tars and no {file.name}: give an empty folder as OUT")
        else:
            with translate_os_errors(file):
                atomic_write(file, self.plan.to_json())

    def write(self, stopped: Callable[[], bool]) -> Iterator[ShardStats]:
        """Finish every shard, and yield its statistics, in order.

        Args:
            stopped: Called before each image; True ends the pack.

        Raises:
            StoppedError: If `stopped` has returned True.
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
        samples = _ShardSamples(self.source, shard, stopped)
        with translate_os_errors(tar):
            write_samples(tar, samples)
            count, failures = len(shard.images), tuple(samples.skipped)
            stats = ShardStats(count, count - len(failures), failures)
            atomic_write(stats_file, stats.to_json())
        return stats


class _ShardSamples:
    """Yields the samples of a shard; after the iteration, `skipped` has the images that cannot be packed."""

    def __init__(self, source: ImageList, shard: PlannedShard, stopped: Callable[[], bool]) -> None:
        self.skipped: list[Skipped] = []
        self._source, self._shard, self._stopped = source, shard, stopped

    def __iter__(self) -> Iterator[dict[str, str | bytes]]:
        for index, image in enumerate(self._shard.images):
            if self._stopped():
                raise StoppedError
            try:
                content, caption = self._source.load(image)
            except NotPackedError as error:
                self.skipped.append(Skipped(image.path, error.stage, error.reason))
                continue
            key = self._shard.key(index)
            metadata = {"caption": caption, "key": key, "path": image.path}
            yield {
                "__key__": key,
                extension_of(image.path): content,
                "json": json.dumps(metadata).encode(),
                "txt": caption.encode(),
            }
