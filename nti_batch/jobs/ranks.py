"""One rank among several: its work units, and the processes that it has started."""

import logging
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lightning.pytorch import Trainer

from nti_batch.lock import UnitInUseError
from nti_batch.output.manifest_rows import Row
from nti_batch.plans.plan import AnyPlan
from nti_batch.records import Pause, WorkUnit

logger = logging.getLogger(__name__)
WAIT_SECONDS = 20.0
"""Time between two looks at the work units of other jobs."""


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


def claim_units(
    plan: AnyPlan, units: Sequence[WorkUnit], stop_requested: Callable[[], bool]
) -> Iterator[tuple[WorkUnit, list[Row]] | Pause]:
    """Claim one work unit after the other.

    In an object store, jobs share the work units: those of other jobs are passed over, and looked at again once all
    others are finished, until they are complete or nobody renews their claim.

    Args:
        plan: The work of the run.
        units: Work units of this rank.
        stop_requested: Whether waiting should end early.

    Returns:
        Units with missing records, each with its rows that count; `RecordWriter` releases a unit when it is finished.
        Pauses, before this rank waits for others, which may wait for what it has in flight.

    Raises:
        UnitInUseError: If another process holds a unit, and jobs do not share them.
    """
    left, is_first = list(units), True
    while left and not stop_requested():
        passed = []
        for unit in left:
            if plan.is_waiting(unit):
                try:
                    rows = plan.run.claim(unit)
                except UnitInUseError as error:
                    if not plan.run.files.is_shared:
                        raise
                    logger.info("%s", error)
                    passed.append(unit)
                else:
                    yield unit, rows
        if passed:
            if is_first:
                logger.warning("%d work units are in use by other jobs; this one waits for them", len(passed))
            # Lightning asks for an item before it passes on the one before it
            yield from (Pause(), Pause())
            _wait(WAIT_SECONDS, stop_requested)
        left, is_first = passed, False


def _wait(seconds: float, stop_requested: Callable[[], bool]) -> None:
    """Wait, or until a stop is requested."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop_requested():
        time.sleep(min(1.0, seconds))


def read_units(
    plan: AnyPlan,
    claimed: Iterator[tuple[WorkUnit, list[Row]] | Pause],
    stop_requested: Callable[[], bool],
) -> Iterator[object]:
    """Read the missing records of claimed work units, until the end or until a stop is requested."""
    for each in claimed:
        if isinstance(each, Pause):
            yield each
            continue
        for item in plan.read(*each, stop_requested):
            if stop_requested():
                return
            yield item


def started_ranks(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    """Processes of the ranks that this process has started."""
    return getattr(trainer.strategy.launcher, "procs", [])
