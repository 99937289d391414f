"""One rank among several: its work units, and the processes that it has started."""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lightning.pytorch import Trainer

from nti_batch.output.manifest_rows import Row
from nti_batch.plans.plan import AnyPlan
from nti_batch.records import WorkUnit


@dataclass(frozen=True, slots=True)
class JobPart:
    """Part `index` of `count` of a run's work units, for one of several jobs that share an output folder."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read 'K/N'; None is the whole run.

        Raises:
            ValueError: If the text is something else.
        """
        if text is None:
            return cls()
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(f"data.part is {text!r}, allowed: 'K/N' with K = 0 to N - 1, for example '0/4'")
        return cls(int(index), int(count))

    def units(self, units: Sequence[WorkUnit], rank: int, ranks: int) -> list[WorkUnit]:
        """The work units of a rank: every `ranks`-th of this job's part."""
        return list(units[self.index :: self.count][rank::ranks])

    def file(self, out: Path, rank: int, suffix: str) -> Path:
        """The file in which a rank of this job writes about itself."""
        job = f"part-{self.index}of{self.count}." if self.count > 1 else ""
        return out / "log" / f"{job}rank-{rank}{suffix}"


def claim_units(plan: AnyPlan, units: Sequence[WorkUnit]) -> Iterator[tuple[WorkUnit, list[Row]]]:
    """Claim one work unit after the other.

    Args:
        plan: The work of the run.
        units: Work units of this rank.

    Returns:
        Units with missing records, each with its rows that count; `RecordWriter` releases a unit when it is finished.

    Raises:
        UnitInUseError: If another process holds a unit.
    """
    for unit in units:
        if plan.is_waiting(unit):
            yield unit, plan.run.claim(unit)


def read_units(
    plan: AnyPlan, claimed: Iterator[tuple[WorkUnit, list[Row]]], stop_requested: Callable[[], bool]
) -> Iterator[object]:
    """Read the missing records of claimed work units, until the end or until a stop is requested."""
    for unit, rows in claimed:
        for item in plan.read(unit, rows, stop_requested):
            if stop_requested():
                return
            yield item


def started_ranks(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    """Processes of the ranks that this process has started."""
    return getattr(trainer.strategy.launcher, "procs", [])
