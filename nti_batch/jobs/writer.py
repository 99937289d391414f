"""Writes finished records to the output folder, and commits them in parts."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from nti_batch.files import OutputError
from nti_batch.jobs.tally import Tally
from nti_batch.output.complete_mark import CompleteMark
from nti_batch.output.origin import Origin, origin_of
from nti_batch.output.part import PartWriter
from nti_batch.output.run_folder import OutputRun
from nti_batch.records import EditedImage, EndOfUnit, Failure, Inversion, Outcome, WorkUnit

logger = logging.getLogger(__name__)


class RecordWriter(BasePredictionWriter):
    """Writes records as they arrive. Commits a part at a count or time limit, and at the end of its work unit."""

    def __init__(self, run: OutputRun[Any, Any, Any], part_images: int, part_minutes: float) -> None:
        """Write nothing yet.

        Args:
            run: The output folder.
            part_images: Maximum number of records in one part.
            part_minutes: Maximum time, in minutes, from the first record of a part to its commit.
        """
        super().__init__(write_interval="batch")
        self.run = run
        self.part_images = part_images
        self.part_minutes = part_minutes
        self.tally = Tally()
        """Records that this process has written."""

        self.last_failure: Failure | None = None
        self._parts: dict[WorkUnit, PartWriter[Any, Any, Any]] = {}
        self._written: Counter[WorkUnit] = Counter()
        """Records of the work units that are not finished."""

        self._ends: dict[WorkUnit, EndOfUnit] = {}
        self._origin: Origin | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note what makes the parts."""
        super().setup(trainer, pl_module, stage)
        self._origin = origin_of(trainer.strategy.root_device)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Sequence[Outcome],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append each outcome to the part of its work unit, and commit the parts that have reached a limit."""
        for outcome in prediction:
            self._write(outcome)
        now = time.monotonic()
        for unit, part in list(self._parts.items()):
            if len(part.rows) >= self.part_images or part.is_full or now - part.started >= 60 * self.part_minutes:
                self._commit(unit)

    def _write(self, outcome: Outcome) -> None:
        unit = outcome.unit
        match outcome:
            case EndOfUnit():
                self._ends[unit] = outcome
            case Failure():
                self._part(unit).add_failure(outcome)
                self._count(outcome)
                self.last_failure = outcome
            case _:
                self._part(unit).add(outcome)
                self._count(outcome)
        if unit in self._ends and self._written[unit] == self._ends[unit].read:
            self._finish(unit)

    def _count(self, record: Inversion | EditedImage | Failure) -> None:
        self._written[record.unit] += 1
        self.tally += Tally.of(record)

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
        """Commit every open part and release all work units."""
        try:
            for unit in list(self._parts):
                self._commit(unit)
        finally:
            for part in self._parts.values():
                part.close()
            self.run.release_all()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Commit the open parts."""
        self.commit_all()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Commit what was finished before the exception; an error of this commit must not hide the exception."""
        try:
            self.commit_all()
        except OutputError as error:
            logger.error("%s", error)
