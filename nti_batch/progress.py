"""What a person sees while the job runs: one line."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nti_batch.writer import PartsWriter


class ProgressLine(Callback):
    """Done, failed, images an hour, time left and mean PSNR of the first rank; on no terminal, a line a minute."""

    def __init__(self, writer: PartsWriter, total: int | None) -> None:
        """Show what `writer` has written.

        Args:
            writer: Of this process.
            total: Images that this rank has before it, about; None if nobody knows.
        """
        self.writer, self.total = writer, total
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.start = self.last = time.monotonic()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock when the weights are loaded."""
        if trainer.is_global_zero:
            self.start = self.last = time.monotonic()
            self.bar.start()
            self.task = self.bar.add_task(self.text(), total=self.total)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show where the job is."""
        if not trainer.is_global_zero:
            return
        self._show()
        if not self.console.is_terminal and time.monotonic() - self.last >= 60:
            self.last = time.monotonic()
            self.console.print(self.text(), highlight=False)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last state on the terminal."""
        if trainer.is_global_zero:
            self._show()
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back before the error is shown."""
        self.bar.stop()

    def _show(self) -> None:
        tally = self.writer.tally
        self.bar.update(self.task, completed=tally.done + tally.failed, description=self.text())

    def text(self) -> str:
        """One line about the images so far."""
        tally = self.writer.tally
        images = tally.done + tally.failed
        parts = [f"{tally.done} done, {tally.failed} failed"]
        if images:
            rate = images / (time.monotonic() - self.start)
            parts.append(f"{3600 * rate:.0f} images/hour")
            if self.total is not None:
                minutes = max(0, self.total - images) / rate / 60
                parts.append(f"{minutes / 60:.1f} h left" if minutes > 90 else f"{minutes:.1f} min left")
        if tally.scored:
            parts.append(f"PSNR {tally.psnr_sum / tally.scored:.2f} dB")
        return ", ".join(parts)
