"""What the plans of both kinds of run have in common."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Generic

from nti_batch.data.samples import Reading
from nti_batch.output.manifest_rows import AnyRow, Row
from nti_batch.output.missing_parts import missing_parts
from nti_batch.output.run_folder import OutputRun
from nti_batch.output.run_kind import AnyRecord, AnySettings
from nti_batch.output.status import RowCounts, RunStatus, ShardStatus
from nti_batch.output.stored_part import StoredPart
from nti_batch.output.throughput import Throughput
from nti_batch.phrases import and_more
from nti_batch.records import EndOfUnit, WorkUnit

logger = logging.getLogger(__name__)
CHANGED_SHOWN = 100
"""Records whose input has changed that a warning names."""


def ignore_row(part: StoredPart[Any], row: Row) -> None:
    """Do nothing with a row."""


def never() -> bool:
    """Nobody requests a stop."""
    return False


@dataclass(frozen=True, slots=True)
class Redo:
    """Committed records that are computed again."""

    failed: bool = False
    """Whether those that have failed are."""

    changed: bool = False
    """Whether those are whose input has changed."""

    ids: frozenset[tuple[str, str]] = frozenset()
    """Shard and key of each image whose records are."""

    def covers(self, row: Row) -> bool:
        """Whether the record of a row is computed again, whatever its input."""
        return (self.failed and row.status == "failed") or (row.shard, row.key) in self.ids


NOTHING_AGAIN = Redo()


class Plan(ABC, Generic[AnyRecord, AnyRow, AnySettings]):
    """The work of a run."""

    def __init__(
        self,
        run: OutputRun[AnyRecord, AnyRow, AnySettings],
        units: Sequence[WorkUnit],
        redo: Redo,
        reading: Reading,
    ) -> None:
        """Take the run and its work units.

        Args:
            run: The output folder.
            units: Work units, those of a shard one after the other.
            redo: Committed records that count as missing.
            reading: How the input is read, and how much of it.
        """
        self.run, self.units, self.redo, self.reading = run, list(units), redo, reading

    @abstractmethod
    def is_waiting(self, unit: WorkUnit) -> bool:
        """Whether a work unit has missing records."""

    @abstractmethod
    def read(self, unit: WorkUnit, rows: Sequence[Row], stop_requested: Callable[[], bool] = never) -> Iterator[object]:
        """The inputs of the missing records of a work unit, then an `EndOfUnit`.

        Args:
            unit: The work unit.
            rows: Its committed rows.
            stop_requested: Whether reading should end early.
        """

    def first(self, units: Sequence[WorkUnit]) -> Iterator[object]:
        """The inputs of the missing records of a shard's work units, and failures, from the first on."""
        for unit in units:
            items = self.read(unit, self.run.rows(unit))
            yield from (item for item in items if not isinstance(item, EndOfUnit))

    @abstractmethod
    def estimate(self, units: Sequence[WorkUnit]) -> int | None:
        """Approximate number of missing records of work units; None if it is unknown."""

    @abstractmethod
    def whole_run(self) -> Sequence[WorkUnit]:
        """Work units of all shards that the run was ever given."""

    @abstractmethod
    def count_missing(self, committed: Mapping[WorkUnit, Collection[str]]) -> int:
        """Number of missing records of a shard.

        Args:
            committed: Ids of the committed records of each of the shard's work units.
        """

    def throughput(self, units: Sequence[WorkUnit]) -> Throughput:
        """Times of the last finished records of work units; those of a damaged manifest are left out."""
        found = Throughput()
        for unit in units:
            with suppress(ValueError):
                for row in self.run.rows(unit):
                    if row.status == "done":
                        found.add(row.finished, row.seconds)
        return found

    def check_redo(self) -> None:
        """Check that the images to compute again are committed.

        Raises:
            ValueError: If one of them is not.
        """
        unknown = set(self.redo.ids)
        for unit in self.units:
            if any(shard == unit.shard and unit.holds(key) for shard, key in self.redo.ids):
                unknown -= {(row.shard, row.key) for row in self.run.rows(unit)}
        if unknown:
            raise ValueError(
                f"data.redo names {' and '.join(f'{shard}/{key}' for shard, key in sorted(unknown))}, and "
                f"{self.run.files.address!r} has no such record: write SHARD/KEY as `nti-batch verify` does"
            )

    def report_changed(self, unit: WorkUnit, names: Sequence[str]) -> None:
        """Warn of committed records whose input has changed, unless they are computed again."""
        if names and not self.redo.changed:
            logger.warning(
                "%s: the input of %s has changed since it was committed: add --data.redo_changed=true to compute it "
                "again",
                unit.shard,
                and_more(names, CHANGED_SHOWN),
            )

    def status(
        self, units: Sequence[WorkUnit], on_row: Callable[[StoredPart[AnyRow], AnyRow], None] = ignore_row
    ) -> RunStatus:
        """How far work units are. The rows of one manifest and the ids of one shard are in memory at a time.

        Args:
            units: Work units, those of a shard one after the other.
            on_row: Called with each row and its part.

        Raises:
            ValueError: If a manifest is damaged, or an unfinished shard cannot be read.
        """
        counts, shards = RowCounts(), list[ShardStatus]()
        # one rank of many does not list a whole bucket
        is_listed = not self.run.files.is_shared or len(units) >= len(self.units)
        if is_listed:
            self.run.files.snapshot()
        for shard, of_shard in groupby(units, key=lambda unit: unit.shard):
            committed: dict[WorkUnit, set[str]] = {}
            done, failed = counts.done, counts.failures.total()
            for unit in of_shard:
                committed[unit] = set()
                for part, row in self.run.located_rows(unit):
                    counts.add(row)
                    on_row(part, row)
                    if row.key:
                        committed[unit].add(row.id)
            done, failed = counts.done - done, counts.failures.total() - failed
            shards.append(ShardStatus(shard, done, failed, self.count_missing(committed)))
        return counts.status(self.run.kind, shards, missing_parts(self.run, units) if is_listed else ())


AnyPlan = Plan[Any, Any, Any]
