"""What a job would do: `--dry_run`. No weights are loaded, nothing is written, and no remote shard is read."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nti_batch.files import existing_ancestor
from nti_batch.jobs.datamodule import UnitDataModule
from nti_batch.jobs.progress import duration
from nti_batch.output.run import OutputRun
from nti_batch.output.serialization import StoredSize
from nti_batch.output.throughput import Throughput
from nti_batch.records import WorkUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The work of a job before it starts."""

    record_noun: str
    """What people call the records."""

    shards: int
    units: tuple[int, ...]
    """Work units of each rank."""

    done: int
    """Committed records."""

    failed: int
    left: int | None
    """Records that the job has before it, about; None if nobody knows."""

    per_hour: float | None
    """At the pace of what is committed; None before the first."""

    size: StoredSize | None
    """Of a record on disk; None if nobody knows."""

    folder: Path
    """Where the output will be, or what there is of the way to it."""

    free: int
    """Bytes there."""

    @classmethod
    def of(
        cls,
        data: UnitDataModule[Any],
        run: OutputRun[Any, Any],
        record_noun: str,
        ranks: int,
        new_size: StoredSize | None,
    ) -> "Plan":
        """Look at the input and at what is committed.

        Args:
            data: With the run attached.
            run: The output, which need not be there.
            record_noun: What people call the records.
            ranks: Of the job.
            new_size: Of a record on disk, for a run in which none is committed.

        Raises:
            ValueError: If a manifest is damaged, or a shard cannot be read.
        """
        units = data.units_of(0, 1)
        rows, pace, stored = Counter[str](), Throughput(), 0
        for unit in units:
            for row in run.rows(unit):
                if row.key:
                    rows[row.status] += 1
                    if row.status == "done":
                        pace.add(row)
            stored += _stored_bytes(run, unit)
        folder = existing_ancestor(run.folder)
        return cls(
            record_noun=record_noun,
            shards=len({unit.url for unit in units}),
            units=tuple(len(data.units_of(rank, ranks)) for rank in range(ranks)),
            done=rows["done"],
            failed=rows["failed"],
            left=data.estimate([unit for unit in units if data.is_waiting(unit)]),
            per_hour=pace.per_hour(),
            size=StoredSize(stored // rows["done"], "so far") if rows["done"] else new_size,
            folder=folder,
            free=shutil.disk_usage(folder).free,
        )

    def lines(self) -> Sequence[str]:
        """For a person."""
        least, most = min(self.units), max(self.units)
        each = f"{most}" if least == most else f"{least} to {most}"
        ranks = "1 rank" if len(self.units) == 1 else f"{each} for each of {len(self.units)} ranks"
        left = "an unknown number" if self.left is None else f"about {self.left:,}"
        unknown = ", since remote shards are not read for this" if self.left is None else ""
        return [
            f"input: {self.shards:,} shards, {sum(self.units):,} work units, {ranks}",
            f"{self.record_noun}: {self.done:,} done and {self.failed:,} failed are committed, {left} left{unknown}",
            f"time: {self._time()}",
            f"disk: {self._disk()}, {_bytes(self.free)} free in {str(self.folder.resolve())!r}",
            "nothing was written; without --dry_run the job runs",
        ]

    def _time(self) -> str:
        if self.left == 0:
            return "none"
        if self.per_hour is None:
            return "unknown until something is committed"
        pace = f"{self.per_hour:,.0f} {self.record_noun} an hour so far"
        return f"unknown, {pace}" if self.left is None else f"{duration(self.left / self.per_hour)} at {pace}"

    def _disk(self) -> str:
        if self.size is None:
            return "unknown until something is committed"
        each = f"{_bytes(self.size.bytes)} for each of the {self.record_noun} {self.size.basis}"
        return each if self.left is None else f"{_bytes(self.left * self.size.bytes)} to come, {each}"


def _stored_bytes(run: OutputRun[Any, Any], unit: WorkUnit) -> int:
    """Of the committed parts of a work unit."""
    parts = (manifest.with_suffix(".tar") for manifest in run.manifests(unit))
    return sum(part.stat().st_size for part in parts if part.exists())


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
