"""Hands what a prediction step returns to the output folder, and commits it in parts."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from nti_batch.diffusion.rounding import Storage
from nti_batch.files import OutputError
from nti_batch.jobs.tally import Tally
from nti_batch.output.edits import EditRun
from nti_batch.output.inversions import InversionRun
from nti_batch.output.part import PartWriter
from nti_batch.output.run import OutputRun
from nti_batch.records import EditedImage, EndOfUnit, Failure, Inversion, Outcome, WorkUnit

logger = logging.getLogger(__name__)


class PartsWriter(BasePredictionWriter):
    """Writes records as they come, and commits a part on a count or time limit and at the end."""

    record_noun: ClassVar[str]
    """What people call the records."""

    psnr_name: ClassVar[str]
    """What their PSNR is called in a status."""

    def __init__(self, run: OutputRun[Any, Any], part_images: int = 64, part_minutes: float = 10.0) -> None:
        """Settings of the output.

        Args:
            run: The output folder.
            part_images: Images in one output tar, at most.
            part_minutes: A part is committed when its first image has waited this long.
        """
        super().__init__(write_interval="batch")
        if part_images < 1:
            raise ValueError(f"output.part_images is {part_images}, allowed: at least 1")
        if part_minutes < 0:
            raise ValueError(f"output.part_minutes is {part_minutes}, allowed: at least 0")
        self.run = run
        self.part_images = part_images
        self.part_minutes = part_minutes
        self.tally = Tally()
        """Of this process."""

        self.last_failure: Failure | None = None
        self._parts: dict[WorkUnit, PartWriter[Any, Any]] = {}
        self._taken: Counter[WorkUnit] = Counter()
        """Records of the work units that are not complete."""

        self._ends: dict[WorkUnit, EndOfUnit] = {}

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
        """Append each outcome to its work unit's part, and commit the parts that are due."""
        for outcome in prediction:
            self._take(outcome)
        now = time.monotonic()
        for unit, part in list(self._parts.items()):
            if len(part.rows) >= self.part_images or now - part.started >= 60 * self.part_minutes:
                self._commit(unit)

    def _take(self, outcome: Outcome) -> None:
        unit = outcome.unit
        match outcome:
            case EndOfUnit():
                self._ends[unit] = outcome
            case Inversion() | EditedImage():
                self._part(unit).add(outcome)
                self._count(outcome)
            case Failure():
                self._part(unit).add_failure(outcome)
                self._count(outcome)
                self.last_failure = outcome
        if unit in self._ends and self._taken[unit] == self._ends[unit].read:
            self._complete(unit)

    def _count(self, outcome: Inversion | EditedImage | Failure) -> None:
        self._taken[outcome.unit] += 1
        self.tally += Tally.of(outcome)

    def _part(self, unit: WorkUnit) -> PartWriter[Any, Any]:
        if unit not in self._parts:
            self._parts[unit] = self.run.new_part(unit)
        return self._parts[unit]

    def _commit(self, unit: WorkUnit) -> None:
        if unit in self._parts:
            self._parts.pop(unit).commit()

    def _complete(self, unit: WorkUnit) -> None:
        """Commit what is left of a work unit and be done with it."""
        self._commit(unit)
        self.run.finish(unit, self._ends.pop(unit).committed + self._taken.pop(unit, 0))
        self.run.release(unit)

    def commit_all(self) -> None:
        """Commit every open part, and leave the work units to whoever comes next."""
        try:
            for unit in list(self._parts):
                self._commit(unit)
        finally:
            for part in self._parts.values():
                part.close()
            self.run.release_all()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Commit what is left."""
        self.commit_all()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was finished before the job broke; that it cannot be kept must not hide why it broke."""
        try:
            self.commit_all()
        except OutputError as error:
            logger.error("%s", error)


class InversionWriter(PartsWriter):
    """Writes inversions."""

    record_noun, psnr_name = "images", "psnr"

    def __init__(self, dir: str, storage: Storage = "float32", **parts: Any) -> None:
        """Settings of the output.

        Args:
            dir: Output folder of the run; the same folder again continues the run.
            storage: Form of the null embeddings in the files; they are rounded to it as they are found, so that a
                replay from the file is the job's own: 'float32', 'float16' or 'compact', the smallest.
            **parts: As for `PartsWriter`.
        """
        super().__init__(InversionRun(Path(dir)), **parts)
        self.storage: Storage = storage


class EditWriter(PartsWriter):
    """Writes edited pictures."""

    record_noun, psnr_name = "edits", "psnr_unedited"

    def __init__(self, dir: str, **parts: Any) -> None:
        """Settings of the output.

        Args:
            dir: Output folder of the edits; the same folder again continues them.
            **parts: As for `PartsWriter`.
        """
        super().__init__(EditRun(Path(dir)), **parts)
