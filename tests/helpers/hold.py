"""Callback that holds a job in the middle of its work."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nti_batch.jobs.edit_module import EditModule
from nti_batch.jobs.invert_module import InversionModule


class Hold(Callback):
    """Waits after some images while a file exists; a request to stop ends the wait."""

    def __init__(self, file: str, images: int = 6, rank: int | None = None) -> None:
        """Store the settings.

        Args:
            file: Path of the file that holds the job.
            images: Number of images to read before the wait.
            rank: The rank that waits; None for all.
        """
        self.file, self.images, self.rank = Path(file), images, rank

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Wait after the last image."""
        assert isinstance(pl_module, InversionModule | EditModule)
        is_here = self.rank in (None, trainer.global_rank)
        if is_here and batch_idx + 1 == self.images and self.file.exists():
            (self.file.parent / f"{self.file.name}.{trainer.global_rank}").touch()
            # the limit ends a rank that has lost its parent
            end = time.monotonic() + 300
            while self.file.exists() and not pl_module.stop.requested and time.monotonic() < end:
                time.sleep(0.05)
