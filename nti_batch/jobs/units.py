"""The work units of a rank: its own, and at the end those that no rank of its job has taken."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain, dropwhile
from pathlib import Path
from uuid import uuid4

from lightning.pytorch import Trainer

from nti_batch.files import OutputError, translate_os_errors
from nti_batch.jobs.ranks import JobPart
from nti_batch.lock import exclusive, is_locked
from nti_batch.output.manifest_rows import Row
from nti_batch.plans.plan import AnyPlan
from nti_batch.records import WorkUnit

logger = logging.getLogger(__name__)
TAKEN_FILE = "taken.jsonl"


@dataclass(frozen=True, slots=True)
class TakenUnits:
    """Work units that ranks of a job have taken, in a file that all of them append to.

    A rank takes a unit before it claims its lock. So a job works on a unit once, even where the records do not tell
    that it is finished (`data.redo`), and a lock that is held is that of another job.
    """

    file: Path
    """File of the run. It keeps the units of all jobs, and each job looks at its own alone."""

    job: str
    """Name of this start of a job, the same in all its ranks and in no other job."""

    @classmethod
    def of_job(cls, file: Path, trainer: Trainer) -> "TakenUnits | None":
        """Agree with the other ranks on the name of the job; all of them call this at the same time.

        Returns:
            None for a single rank, and where nodes do not see each other's locks.
        """
        if trainer.world_size == 1:
            return None
        strategy, is_first = trainer.strategy, trainer.is_global_zero
        with ExitStack() as held:
            # an error comes again with the first claim, where no rank waits for another
            with suppress(OSError, OutputError):
                if is_first:
                    held.enter_context(exclusive(file))
            job = strategy.broadcast(uuid4().hex)
            is_shared = strategy.reduce_boolean_decision(is_first or is_locked(file))
        if not is_shared and is_first:
            logger.warning(
                "the nodes do not see each other's locks in %s: a rank that has finished does not help the others, and "
                "two jobs on the same images would not notice each other",
                file.parent,
            )
        return cls(file, job) if is_shared else None

    def take(self, unit: WorkUnit) -> bool:
        """Take a unit for this rank; return whether no other rank has.

        Raises:
            OutputError: If the file cannot be written or locked.
        """
        line = json.dumps({"job": self.job, "unit": unit.name})
        with translate_os_errors(self.file), exclusive(self.file) as file:
            file.seek(0)
            if line in file.read().splitlines():
                return False
            # the newline comes first: a full disk may have cut the line before
            file.write(f"\n{line}")
            return True


class RankUnits:
    """Work units of one rank, taken one after the other as their turn comes."""

    def __init__(self, plan: AnyPlan, part: JobPart, rank: int, ranks: int, taken: TakenUnits | None) -> None:
        """Take no unit yet.

        Args:
            plan: The work of the run.
            part: The job's part of it.
            rank: This rank.
            ranks: Number of ranks.
            taken: Units that ranks have taken; None if each keeps to its own.
        """
        self.plan, self.taken = plan, taken
        self._own, self._others = part.queue(plan.units, rank, ranks)
        self._first: WorkUnit | None = None
        self._is_mine = dict.fromkeys(self._own, True)

    def take_first(self, stop_requested: Callable[[], bool]) -> None:
        """Take the first of the rank's own units with missing records, before any rank takes from others."""
        if self.taken is not None:
            # an error comes again in `claim`, where no rank waits for another
            with suppress(Exception):
                self._first = next(self._take(self._own, stop_requested), None)

    def claim(self, stop_requested: Callable[[], bool]) -> Iterator[tuple[WorkUnit, list[Row]]]:
        """Take and claim one unit after the other, until none is left or a stop is requested.

        Returns:
            Units with missing records, each with its rows that count; `RecordWriter` releases a unit when it is
            finished.

        Raises:
            UnitInUseError: If another job holds a unit.
            OutputError: If the output folder cannot be written.
        """
        units = chain(self._own, self._others if self.taken else ())
        left = dropwhile(lambda unit: self._first not in (None, unit), units)
        for unit in self._take(left, stop_requested):
            yield unit, self.plan.run.claim(unit)

    def _take(self, units: Iterable[WorkUnit], stop_requested: Callable[[], bool]) -> Iterator[WorkUnit]:
        """Take the units that have missing records."""
        for unit in units:
            if stop_requested():
                return
            if self.plan.is_waiting(unit):
                self._is_mine[unit] = self.taken is None or unit == self._first or self.taken.take(unit)
                if self._is_mine[unit]:
                    yield unit

    def mine(self) -> list[WorkUnit]:
        """The rank's own units that no other rank has taken, and those that it has taken from others."""
        return [unit for unit in self.plan.units if self._is_mine.get(unit)]


def read_units(
    plan: AnyPlan, claimed: Iterator[tuple[WorkUnit, list[Row]]], stop_requested: Callable[[], bool]
) -> Iterator[object]:
    """Read the missing records of claimed work units, until the end or until a stop is requested."""
    for unit, rows in claimed:
        for item in plan.read(unit, rows, stop_requested):
            if stop_requested():
                return
            yield item
