"""What the plans of both kinds of run have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Generic

from nti_batch.output.manifest_rows import AnyRow, Row
from nti_batch.output.run_folder import OutputRun
from nti_batch.output.run_kind import AnyRecord, AnySettings
from nti_batch.output.status import RowCounts, RunStatus
from nti_batch.records import WorkUnit


def ignore_row(path: Path, row: Row) -> None:
    """Do nothing with a row."""


def never() -> bool:
    """Nobody requests a stop."""
    return False


class Plan(ABC, Generic[AnyRecord, AnyRow, AnySettings]):
    """The work of a run."""

    def __init__(
        self,
        run: OutputRun[AnyRecord, AnyRow, AnySettings],
        units: Sequence[WorkUnit],
        retry_failed: bool = False,
        allow_pipe: bool = False,
    ) -> None:
        """Take the run and its work units.

        Args:
            run: The output folder.
            units: Work units, those of a shard one after the other.
            retry_failed: Whether records that are committed as failed count as missing.
            allow_pipe: Whether reading a shard may run a shell command.
        """
        self.run, self.units, self.retry_failed, self.allow_pipe = run, list(units), retry_failed, allow_pipe

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

    def status(self, units: Sequence[WorkUnit], on_row: Callable[[Path, AnyRow], None] = ignore_row) -> RunStatus:
        """How far work units are. The rows of one manifest and the ids of one shard are in memory at a time.

        Args:
            units: Work units, those of a shard one after the other.
            on_row: Called with each manifest and row.

        Raises:
            ValueError: If a manifest is damaged, or an unfinished shard cannot be read.
        """
        counts, missing = RowCounts(), 0
        for _, of_shard in groupby(units, key=lambda unit: unit.url):
            committed: dict[WorkUnit, set[str]] = {}
            for unit in of_shard:
                committed[unit] = set()
                for path, row in self.run.located_rows(unit):
                    counts.add(row)
                    on_row(path, row)
                    if row.key:
                        committed[unit].add(row.id)
            missing += self.count_missing(committed)
        return counts.status(self.run.kind, missing)


AnyPlan = Plan[Any, Any, Any]
