"""The plan of an inversion run: which images of each work unit are missing."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from nti_batch.data.samples import RawSample, decode_sample, read_unit
from nti_batch.data.shard_reader import count_images
from nti_batch.data.shards import refuse_pipes, work_units
from nti_batch.output.inversions import InversionRun
from nti_batch.output.manifest_rows import InversionRow, Row
from nti_batch.plans.plan import Plan, never
from nti_batch.records import CaptionedImage, EndOfUnit, Failure, Inversion, WorkUnit
from nti_batch.settings import InversionRunSettings

COUNTED_SHARDS = 16
"""Shards whose headers are read for an estimate."""


class ImagePlan(Plan[Inversion, InversionRow, InversionRunSettings]):
    """The images of an inversion run."""

    @classmethod
    def of_run(
        cls,
        run: InversionRun,
        shards: Sequence[str] | None = None,
        allow_pipe: bool = False,
        retry_failed: bool = False,
    ) -> "ImagePlan":
        """The plan of a whole run.

        Args:
            run: The output folder.
            shards: Addresses of the input shards; None for those that the run recorded.
            allow_pipe: Whether reading a shard may run a shell command.
            retry_failed: Whether images that are committed as failed count as missing.

        Raises:
            ValueError: If reading a shard would run a command and that is not allowed.
        """
        urls = list(run.shards if shards is None else shards)
        if not allow_pipe:
            refuse_pipes(urls)
        return cls(run, work_units(urls, run.settings.units_per_shard), retry_failed)

    def is_waiting(self, unit: WorkUnit) -> bool:
        """Whether an image of the unit is missing."""
        return not self.run.is_complete(unit) or (self.retry_failed and self.run.has_failures(unit))

    def read(
        self, unit: WorkUnit, rows: Sequence[Row], stop_requested: Callable[[], bool] = never
    ) -> Iterator[CaptionedImage | Failure | EndOfUnit]:
        """The missing images of a work unit, decoded."""
        settings, committed, read = self.run.settings, {row.key for row in rows}, 0
        for sample in read_unit(unit, settings.caption, committed, stop_requested):
            if sample.key not in committed:
                read += 1
                if isinstance(sample, RawSample):
                    yield decode_sample(sample, settings.height, settings.width)
                else:
                    yield sample
        yield EndOfUnit(unit, len(committed), read)

    def estimate(self, units: Sequence[WorkUnit]) -> int | None:
        """Approximate number of missing images, by the headers of the first shards; None if those are remote."""
        urls = list(dict.fromkeys(unit.url for unit in units))[:COUNTED_SHARDS]
        if not all(os.path.exists(url) for url in urls):  # Path's own raises for a long command
            return None
        images = {url: count_images(url) for url in urls}
        counted = [unit for unit in units if unit.url in images]
        total = sum(_share(unit, images[unit.url]) - self._count_kept(unit) for unit in counted)
        return round(max(0, total) * len(units) / max(1, len(counted)))

    def _count_kept(self, unit: WorkUnit) -> int:
        """Number of committed images that are not inverted again."""
        rows = (row for row in self.run.rows(unit) if row.key)
        return sum(1 for row in rows if row.status == "done" or not self.retry_failed)

    def whole_run(self) -> Sequence[WorkUnit]:
        """Work units of all shards that the run was ever given."""
        return work_units(self.run.shards, self.run.settings.units_per_shard)

    def count_missing(self, committed: Mapping[WorkUnit, Collection[str]]) -> int:
        """Number of missing images of a shard, by the headers of its tar unless all its units are complete."""
        waiting = [unit for unit in committed if not self.run.is_complete(unit)]
        if not waiting:
            return 0
        images = count_images(waiting[0].url)
        return max(0, sum(_share(unit, images) - len(committed[unit]) for unit in waiting))


def _share(unit: WorkUnit, images: int) -> int:
    """Number of a shard's images that belong to a work unit."""
    return len(range(unit.index, images, unit.count))
