"""A callback that keeps a job in the middle of its work for as long as a test wants."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nti_batch.jobs.edit_module import EditModule
from nti_batch.jobs.invert_module import InversionModule


class Hold(Callback):
    """Waits after a few images while a file exists; a stop that is asked for ends the wait."""

    def __init__(self, file: str, images: int = 6) -> None:
        """Remember the file and how many images are read first."""
        self.file, self.images = Path(file), images

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Wait."""
        assert isinstance(pl_module, InversionModule | EditModule)
        if batch_idx + 1 == self.images and self.file.exists():
            (self.file.parent / f"{self.file.name}.{trainer.global_rank}").touch()
            # no longer than any test: a rank that has lost its parent must not stay
            end = time.monotonic() + 300
            while self.file.exists() and not pl_module.stop.requested and time.monotonic() < end:
                time.sleep(0.05)
