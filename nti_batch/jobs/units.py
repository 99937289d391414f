"""The work units of a rank: its own, and at the end those that no rank of its job has taken."""

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain, dropwhile
from pathlib import Path
from uuid import uuid4

from lightning.pytorch import Trainer

from nti_batch.files import OutputError, translate_os_errors
from nti_batch.jobs.ranks import JobPart
from nti_batch.lock import UnitInUseError, exclusive, is_locked
from nti_batch.output.manifest_rows import Row
from nti_batch.output.run_folder import AnyRun
from nti_batch.plans.plan import AnyPlan
from nti_batch.records import Pause, WorkUnit

logger = logging.getLogger(__name__)
TAKEN_FILE = "taken.jsonl"
WAIT_SECONDS = 20.0
"""Time between two looks at the work units of other jobs."""

Claimed = tuple[WorkUnit, list[Row]]
"""A work unit with missing records, and its rows that count."""


@dataclass(slots=True)
class TakenUnits:
    """Work units that ranks of a job have taken, in a file that all of them append to.

    A rank takes a unit before it claims it. So a job works on a unit once, even where the records do not tell that it
    is finished (`data.redo`), and a claim that is held is that of another job.
    """

    file: Path
    """File of the run, or of its local copy. It keeps the units of all jobs, and each job looks at its own alone."""

    job: str
    """Name of this start of a job, the same in all its ranks and in no other job."""

    _lines: set[str] = field(default_factory=set, compare=False, repr=False)
    """Lines that have been read."""

    _end: int = field(default=0, compare=False, repr=False)
    """Place in the file up to which they have been."""

    @classmethod
    def of_job(cls, run: AnyRun, trainer: Trainer) -> "TakenUnits | None":
        """Agree with the other ranks on the name of the job; all of them call this at the same time.

        Returns:
            None for a single rank, and where nodes do not see each other's locks.
        """
        if trainer.world_size == 1:
            return None
        file, strategy, is_first = run.out / TAKEN_FILE, trainer.strategy, trainer.is_global_zero
        with ExitStack() as held:
            # an error comes again with the first claim, where no rank waits for another
            with suppress(OSError, OutputError):
                if is_first:
                    held.enter_context(exclusive(file))
            job = strategy.broadcast(uuid4().hex)
            sees_locks = strategy.reduce_boolean_decision(is_first or is_locked(file))
        # in an object store, jobs need no locks to notice each other
        if not sees_locks and is_first and not run.files.is_shared:
            logger.warning(
                "the nodes do not see each other's locks in %s: a rank that has finished does not help the others, and "
                "two jobs on the same images would not notice each other",
                file.parent,
            )
        return cls(file, job) if sees_locks else None

    def take(self, unit: WorkUnit) -> bool:
        """Take a unit for this rank; return whether no other rank has.

        Raises:
            OutputError: If the file cannot be written or locked.
        """
        line = json.dumps({"job": self.job, "unit": unit.name})
        with translate_os_errors(self.file), exclusive(self.file) as file:
            file.seek(self._end)
            self._lines.update(file.read().splitlines())
            self._end = file.tell()
            if line in self._lines:
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

    def claim(self, stop_requested: Callable[[], bool]) -> Iterator[Claimed | Pause]:
        """Take and claim one unit after the other, until none is left or a stop is requested.

        In an object store, jobs share the work units. Those of other jobs are passed over, and looked at again once all
        others are finished, until they are complete or nobody renews their claim.

        Returns:
            Units with missing records, each with its rows that count; `RecordWriter` releases a unit when it is
            finished. Pauses before this rank waits for other jobs, which may wait for what it has in flight.

        Raises:
            UnitInUseError: If another job holds a unit, and jobs do not share them.
            OutputError: If the output folder cannot be written, or a file in it is damaged.
        """
        units = chain(self._own, self._others if self.taken else ())
        left = self._take(dropwhile(lambda unit: self._first not in (None, unit), units), stop_requested)
        passed = yield from self._claim_free(left)
        if passed:
            logger.warning("%d work units are in use by other jobs; this one waits for them", len(passed))
        while passed:
            # Lightning asks for an item before it passes on the one before it
            yield from (Pause(), Pause())
            _wait(WAIT_SECONDS, stop_requested)
            if stop_requested():
                return
            passed = yield from self._claim_free(filter(self._is_waiting, passed))

    def _claim_free(self, units: Iterable[WorkUnit]) -> Generator[Claimed, None, list[WorkUnit]]:
        """Claim the units that no other job holds; return those that another one does."""
        passed = []
        for unit in units:
            try:
                rows = self.plan.run.claim(unit)
            except UnitInUseError as error:
                if not self.plan.run.files.is_shared:
                    raise
                logger.info("%s", error)
                passed.append(unit)
            except ValueError as error:
                raise OutputError(str(error)) from error
            else:
                yield unit, rows
        return passed

    def _take(self, units: Iterable[WorkUnit], stop_requested: Callable[[], bool]) -> Iterator[WorkUnit]:
        """Take the units that have missing records."""
        for unit in units:
            if stop_requested():
                return
            if self._is_waiting(unit):
                self._is_mine[unit] = self.taken is None or unit == self._first or self.taken.take(unit)
                if self._is_mine[unit]:
                    yield unit

    def _is_waiting(self, unit: WorkUnit) -> bool:
        try:
            return self.plan.is_waiting(unit)
        except ValueError as error:
            raise OutputError(str(error)) from error

    def mine(self) -> list[WorkUnit]:
        """The rank's own units that no other rank has taken, and those that it has taken from others."""
        return [unit for unit in self.plan.units if self._is_mine.get(unit)]


def read_units(
    plan: AnyPlan, claimed: Iterator[Claimed | Pause], stop_requested: Callable[[], bool]
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


def _wait(seconds: float, stop_requested: Callable[[], bool]) -> None:
    """Wait, or until a stop is requested."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop_requested():
        time.sleep(min(1.0, seconds))
