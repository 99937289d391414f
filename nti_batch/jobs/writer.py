"""Writes finished records to the output folder in a background thread, and commits them in parts."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nti_batch.diffusion.clock import DeviceClock
from nti_batch.jobs.failure_limit import FailureLimit
from nti_batch.jobs.log import record_line
from nti_batch.jobs.tally import Tally
from nti_batch.output.complete_mark import CompleteMark
from nti_batch.output.origin import Origin, origin_of
from nti_batch.output.part import PartWriter
from nti_batch.output.run_folder import OutputRun
from nti_batch.records import EditedImage, EndOfUnit, Failure, Inversion, Outcome, WorkUnit

logger = logging.getLogger(__name__)

MAX_WAITING = 8
"""Outcomes that wait to be written. Packing and writing them all takes a fraction of a second."""


class RecordWriter(Callback):
    """Writes records as they arrive. Commits a part at a count or time limit, and at the end of its work unit.

    One thread does this, one outcome after the other. Its first error ends it, and `put` raises it.
    """

    def __init__(
        self, run: OutputRun[Any, Any, Any], part_images: int, part_minutes: float, limit: FailureLimit | None
    ) -> None:
        """Write nothing yet.

        Args:
            run: The output folder.
            part_images: Maximum number of records in one part.
            part_minutes: Maximum time, in minutes, from the first record of a part to its commit.
            limit: Limit of the failures; None allows any number.
        """
        self.run = run
        self.part_images = part_images
        self.part_minutes = part_minutes
        self.limit = limit
        self.tally = Tally()
        """Records that this process has written."""

        self.clock = DeviceClock()
        """Time of packing, writing and committing."""

        self._parts: dict[WorkUnit, PartWriter[Any, Any, Any]] = {}
        self._written: Counter[WorkUnit] = Counter()
        """Records of the work units that are not finished."""

        self._ends: dict[WorkUnit, EndOfUnit] = {}
        self._origin: Origin | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[Future[None]] = deque()
        self._is_broken = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note what makes the parts."""
        self._origin = origin_of(trainer.strategy.root_device)

    def put(self, outcome: Outcome) -> None:
        """Hand an outcome to the thread; wait while `MAX_WAITING` others do.

        Raises:
            OutputError: If an earlier outcome could not be written.
            TooManyFailuresError: If too many records have failed.
        """
        self._submit(lambda: self._write(outcome))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let the thread commit the parts that have reached a limit, and raise its error."""
        self._submit(self._commit_full_parts)

    def _submit(self, task: Callable[[], None]) -> None:
        self._waiting.append(self._thread.submit(self._run, task))
        while self._waiting and (len(self._waiting) > MAX_WAITING or self._waiting[0].done()):
            self._waiting.popleft().result()

    @property
    def waiting(self) -> int:
        """Outcomes that wait to be written."""
        return sum(not task.done() for task in list(self._waiting))

    def _run(self, task: Callable[[], None]) -> None:
        """Run a task in the thread, unless one before has failed: a part that broke must not be begun again."""
        if not self._is_broken:
            self._is_broken = True
            with self.clock.running():
                task()
            self._is_broken = False

    def _write(self, outcome: Outcome) -> None:
        """Append an outcome to the part of its work unit, and commit the parts that have reached a limit."""
        unit = outcome.unit
        match outcome:
            case EndOfUnit():
                self._ends[unit] = outcome
            case Failure():
                self._part(unit).add_failure(outcome)
                self._count(outcome)
            case _:
                self._part(unit).add(outcome)
                self._count(outcome)
        if unit in self._ends and self._written[unit] == self._ends[unit].read:
            self._finish(unit)
        self._commit_full_parts()
        if self.limit and isinstance(outcome, Failure):
            self.limit.check(self.tally, outcome, self.run.kind.record_noun)

    def _commit_full_parts(self) -> None:
        now = time.monotonic()
        for unit, part in list(self._parts.items()):
            if len(part.rows) >= self.part_images or part.is_full or now - part.started >= 60 * self.part_minutes:
                self._commit(unit)

    def _count(self, record: Inversion | EditedImage | Failure) -> None:
        self._written[record.unit] += 1
        self.tally += Tally.of(record)
        logger.info("%s", record_line(record))

    def _part(self, unit: WorkUnit) -> PartWriter[Any, Any, Any]:
        if unit not in self._parts:
            assert self._origin is not None
            self._parts[unit] = self.run.new_part(unit, self._origin)
        return self._parts[unit]

    def _commit(self, unit: WorkUnit) -> None:
        if unit in self._parts:
            self._parts.pop(unit).commit()

    def _finish(self, unit: WorkUnit) -> None:
        """Commit the rest of a work unit and release it."""
        end = self._ends.pop(unit)
        self._written.pop(unit, None)
        if end.is_recovered:
            self._part(unit).add_recovery(unit)
        self._commit(unit)
        if end.input_state is not None:
            self.run.mark_complete(unit, CompleteMark(end.records, end.input_state))
        self.run.release(unit)

    def commit_all(self) -> None:
        """Wait until all outcomes are written, and commit every open part.

        Raises:
            OutputError: If something cannot be written.
            TooManyFailuresError: If too many records have failed.
        """
        self._thread.shutdown()
        try:
            with self.clock.running():
                for unit in list(self._parts):
                    self._commit(unit)
        finally:
            for part in self._parts.values():
                part.close()
        while self._waiting:
            self._waiting.popleft().result()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Commit the open parts."""
        self.commit_all()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Commit what was finished before the exception; an error of this commit must not hide the exception."""
        try:
            self.commit_all()
        except Exception as error:
            logger.error("%s", error)
