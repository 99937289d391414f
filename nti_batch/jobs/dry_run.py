"""`--dry_run`: the work of a job before it starts, and what would fail of the first images of each shard.

It loads no weights, writes nothing and reads no remote shard.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Self

import torch
from lightning.pytorch import Trainer

from nti_batch.files import existing_ancestor
from nti_batch.jobs.ranks import JobPart
from nti_batch.output.serialization import StoredSize
from nti_batch.output.status import FAILURES_SHOWN, FailedRecord
from nti_batch.output.throughput import Throughput
from nti_batch.phrases import format_duration
from nti_batch.plans.plan import AnyPlan
from nti_batch.records import Failure, WorkUnit

OPENED = 8
"""Images of a shard that are opened."""

OPENING_SECONDS = 60.0
"""Time after which no further shard is opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """The work of a job."""

    record_noun: str
    shards: int
    units: tuple[int, ...]
    """Number of work units of each rank."""

    done: int
    """Committed records."""

    failed: int
    left: int | None
    """Approximate number of missing records; None if it is unknown."""

    per_hour: float | None
    """Rate of the committed records; None before the first."""

    size: StoredSize | None
    """Size of a record on disk; None if it is unknown."""

    first: "FirstImages"
    devices: str
    """The devices of this node."""

    folder: Path
    """The output folder, or the part of its path that exists."""

    free: int
    """Free bytes there."""

    store: str
    """Address of a run in an object store, of which that folder holds what is not yet there; empty for others."""

    @classmethod
    def of(cls, plan: AnyPlan, part: JobPart, trainer: Trainer, new_size: StoredSize | None) -> Self:
        """Read the beginning of the input, and what is committed.

        Args:
            plan: Work of the run, whose output folder need not exist.
            part: This job's part of it.
            trainer: Lightning's Trainer, which has found its devices.
            new_size: Size of a record on disk, for a run without records.

        Raises:
            ValueError: If a manifest is damaged, or a shard cannot be read.
        """
        units, ranks = part.units(plan.units, 0, 1), trainer.num_devices * trainer.num_nodes
        rows, throughput, stored = Counter[str](), Throughput(), 0
        plan.run.files.snapshot()
        for unit in units:
            for row in plan.run.rows(unit):
                if row.key:
                    rows[row.status] += 1
                    if row.status == "done":
                        throughput.add(row.finished, row.seconds)
            stored += _stored_bytes(plan, unit)
        folder = existing_ancestor(plan.run.folder)
        return cls(
            record_noun=plan.run.kind.record_noun,
            shards=len({unit.shard for unit in units}),
            units=tuple(len(part.units(plan.units, rank, ranks)) for rank in range(ranks)),
            done=rows["done"],
            failed=rows["failed"],
            left=plan.estimate([unit for unit in units if plan.is_waiting(unit)]),
            per_hour=throughput.per_hour(),
            # the tars of a run in an object store are not here
            size=StoredSize(stored // rows["done"], "so far") if stored else new_size,
            first=FirstImages.read(plan, units),
            devices=describe_devices(trainer),
            folder=folder,
            free=shutil.disk_usage(folder).free,
            store=plan.run.files.address if plan.run.files.is_shared else "",
        )

    def lines(self) -> Sequence[str]:
        """The work as text."""
        least, most = min(self.units), max(self.units)
        each = f"{most}" if least == most else f"{least} to {most}"
        ranks = "1 rank" if len(self.units) == 1 else f"{each} for each of {len(self.units)} ranks"
        left = "an unknown number" if self.left is None else f"about {self.left:,}"
        unknown = " (a dry run reads no remote shard)" if self.left is None else ""
        return [
            f"input: {self.shards:,} shards, {sum(self.units):,} work units, {ranks}",
            f"{self.record_noun}: {self.done:,} done and {self.failed:,} failed are committed, {left} left{unknown}",
            f"time: {self._time()}",
            f"disk: {self._disk()}, {self._place()}",
            f"devices: {self.devices}",
            *self.first.lines(),
            "nothing was written; without --dry_run the job runs",
        ]

    def _place(self) -> str:
        free = f"{_bytes(self.free)} free in {str(self.folder.resolve())!r}"
        return f"to {self.store!r}; {free} for what is not yet there" if self.store else free

    def _time(self) -> str:
        if self.left == 0:
            return "none"
        if self.per_hour is None:
            return "unknown until a record is committed"
        rate = f"{self.per_hour:,.0f} {self.record_noun} an hour so far"
        return (
            f"unknown, {rate}"
            if self.left is None
            else f"{format_duration(3600 * self.left / self.per_hour)} at {rate}"
        )

    def _disk(self) -> str:
        if self.size is None:
            return "unknown until a record is committed"
        each = f"{_bytes(self.size.bytes)} for each of the {self.record_noun} {self.size.basis}"
        return each if self.left is None else f"{_bytes(self.left * self.size.bytes)} to write, {each}"


@dataclass(slots=True)
class FirstImages:
    """Outcome of decoding the first missing images of each shard, or of reading the first edits."""

    shards: int = 0
    """Shards that were opened."""

    unopened: int = 0
    """Shards that are remote, or that the time did not suffice for."""

    opened: int = 0
    """Records that were read."""

    failures: list[FailedRecord] = field(default_factory=list)
    """Records that would fail, and damaged shards."""

    @classmethod
    def read(cls, plan: AnyPlan, units: Sequence[WorkUnit]) -> Self:
        """Read the first missing records of each shard, as the job does."""
        found, end = cls(), time.monotonic() + OPENING_SECONDS
        for _, of_shard in groupby(units, key=lambda unit: unit.shard):
            waiting = [unit for unit in of_shard if plan.is_waiting(unit)]
            if waiting and os.path.exists(waiting[0].url) and time.monotonic() < end:
                found.shards += 1
                found._open(islice(plan.first(waiting), OPENED))
            elif waiting:
                found.unopened += 1
        return found

    def _open(self, records: Iterable[object]) -> None:
        for record in records:
            self.opened += 1
            if isinstance(record, Failure):
                self.failures.append(FailedRecord.of_failure(record))

    def lines(self) -> list[str]:
        """The outcome as text."""
        unopened = f"; {self.unopened:,} shards were not opened" if self.unopened else ""
        opened = (
            f"opened: the first {self.opened:,} of {self.shards:,} shards, {len(self.failures):,} would fail{unopened}"
        )
        shown = [f"would fail {each.id}: {each.stage}: {each.error}" for each in self.failures[:FAILURES_SHOWN]]
        more = len(self.failures) - len(shown)
        return [opened, *shown, *([f"and {more} more"] if more else [])]


def describe_devices(trainer: Trainer) -> str:
    """The devices of this node as text; the Trainer has refused devices that are not there."""
    kind, nodes = trainer.strategy.root_device.type, trainer.num_nodes
    if kind == "cuda":
        names = Counter(torch.cuda.get_device_name(index) for index in trainer.device_ids)
        found = ", ".join(f"{count} x {name}" for name, count in names.items())
    else:
        found = f"{trainer.num_devices} x {kind}, of {os.cpu_count()} cores; no GPU is used" if kind == "cpu" else kind
    return found if nodes == 1 else f"{found}; the other {nodes - 1} of {nodes} nodes are not checked"


def _stored_bytes(plan: AnyPlan, unit: WorkUnit) -> int:
    """Size of the committed parts of a work unit."""
    tars = (part.read().tar for part in plan.run.parts(unit))
    return sum(tar.stat().st_size for tar in tars if tar and tar.exists())


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
