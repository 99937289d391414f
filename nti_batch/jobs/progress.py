"""Progress of a job on the terminal, and in Lightning's loggers."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from nti_batch.console import ErrorConsole
from nti_batch.jobs.meter import JobMeter
from nti_batch.jobs.rank_numbers import RankNumbers
from nti_batch.terminal import print_line

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0
"""Time between two lines where there is no terminal, and between two messages to the loggers."""


class ProgressDisplay:
    """A bar on a terminal; elsewhere a line a minute."""

    def __init__(self, meter: JobMeter) -> None:
        """Show nothing yet."""
        self.meter = meter
        self.console = ErrorConsole()
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            # on a narrow terminal only the bar shrinks
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal or meter.rank != 0,
            expand=True,
            # the thread that draws takes turns with the one that computes
            refresh_per_second=1,
        )
        self._task: TaskID | None = None

    def start(self) -> None:
        """Draw the bar."""
        with suppress(OSError):  # here and below: the terminal has gone, and the job continues
            self.bar.start()
        noun, text = self.meter.kind.record_noun, ", ".join(self.meter.summary())
        self._task = self.bar.add_task(noun, total=self.meter.total, text=text)

    def update(self) -> None:
        """Draw the present numbers."""
        if self._task is not None:
            text = ", ".join(self.meter.summary())
            with suppress(OSError):
                self.bar.update(self._task, completed=self.meter.tally.processed, text=text)

    def print_line(self) -> None:
        """Print the present numbers where there is no bar."""
        if not self.console.is_terminal:
            with suppress(OSError):
                print_line(self.meter.line(), sys.stderr)

    def stop(self) -> None:
        """Leave the last state on the terminal."""
        with suppress(OSError):
            self.bar.stop()


class JobProgress(Callback):
    """Shows the progress on the first rank, and publishes the numbers of other ranks. A context of the prediction."""

    def __init__(self, meter: JobMeter, numbers: RankNumbers) -> None:
        """Take the progress of the job and the numbers of this rank, which the loggers get, too."""
        self.meter, self.display, self.numbers = meter, ProgressDisplay(meter), numbers
        self._loggers: list[Logger] = []
        self._is_running = False
        self._printed = 0.0

    def __enter__(self) -> Self:
        """Replace the numbers of an earlier start, before ranks meet."""
        self.meter.reset()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Leave the last state on the terminal, and send it to the loggers unless the job broke."""
        if self._is_running:
            self.meter.refresh(force=True)
            self.display.update()
            if kind is None:
                self._log()
            self._with_loggers(lambda logger: logger.finalize("failed" if kind else "success"))
        self.display.stop()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start when the weights are loaded."""
        if trainer.is_global_zero:
            self.meter.reset()
            self._is_running, self._printed = True, time.monotonic()
            # Lightning would end the job with the error of a logger that cannot be closed
            self._loggers, trainer.loggers = trainer.loggers, []
            self.display.start()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the numbers."""
        self.update()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the final numbers of this rank."""
        self.meter.refresh(force=True)

    def wait_for(self, ranks: Iterable["subprocess.Popen[bytes]"]) -> None:
        """Show the progress until all these ranks have ended."""
        for process in ranks:
            while True:
                self.update()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=self.meter.tallies.refresh_seconds)
                    break

    def update(self) -> None:
        """Refresh the numbers, draw them, and once a minute print and log them."""
        self.meter.refresh()
        if not self._is_running:
            return
        self.display.update()
        if time.monotonic() - self._printed >= LINE_SECONDS:
            self._printed = time.monotonic()
            self.display.print_line()
            self._log()

    def _log(self) -> None:
        """Send the numbers to Lightning's loggers."""

        def send(logger: Logger) -> None:
            logger.log_metrics(self.meter.metrics() | self.numbers.metrics(), step=self.meter.tally.processed)
            logger.save()

        self._with_loggers(send)

    def _with_loggers(self, act: Callable[[Logger], None]) -> None:
        """Do something with each logger; one that fails is left out from then on."""
        for logger in list(self._loggers):
            try:
                act(logger)
            except Exception as error:  # a full disk, a server that is away: each logger has errors of its own
                self._loggers.remove(logger)
                log.warning("%s fails (%s): the job continues without it", type(logger).__name__, error)
