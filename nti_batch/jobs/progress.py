"""What a person sees while the job runs, and what Lightning's loggers are told: all ranks of the job together.

Each rank keeps its numbers in OUT/log/rank-3.json, and the first one adds them up: ranks are out of step for hours, so
none may wait for another.
"""

import dataclasses
import json
import subprocess
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from nti_batch.files import replace_file
from nti_batch.jobs.tally import Tally
from nti_batch.jobs.writer import PartsWriter

LINE_SECONDS = 60.0
"""Between two lines where there is no terminal, and between two messages to Lightning's loggers."""


RATE_LINES = 60
"""The rate is that of the last hour: one of a week would not show that something is slow today."""


@dataclasses.dataclass(frozen=True, slots=True)
class RankTallies:
    """The numbers of all ranks of a job, in a file each."""

    files: list[Path]
    """Of the ranks in order; one without a file has written nothing yet."""

    @property
    def seconds(self) -> float:
        """Between two looks: a file or so a second is written, and read, however many ranks there are."""
        return min(LINE_SECONDS, float(len(self.files)))

    def publish(self, rank: int, tally: Tally) -> None:
        """Tell the first rank; what cannot be written is missing in its lines and nowhere else."""
        if len(self.files) > 1:
            with suppress(OSError):
                replace_file(self.files[rank], json.dumps(dataclasses.asdict(tally)))

    def sum(self, rank: int, tally: Tally) -> Tally:
        """What all have written, a rank's own numbers being known to itself."""
        for other, file in enumerate(self.files):
            if other != rank:
                with suppress(OSError, ValueError):
                    tally = tally + Tally(**json.loads(file.read_text()))
        return tally


class JobProgress(Callback):
    """Done, failed, records an hour, time left and mean PSNR, on the first rank; the others send it their numbers.

    A context around the prediction: a bar on a terminal, on none a line a minute.
    """

    def __init__(self, writer: PartsWriter, tallies: RankTallies, rank: int, total: int | None) -> None:
        """Show what has been written since the start.

        Args:
            writer: Of this process.
            tallies: Of all ranks.
            rank: Of this process.
            total: Records that the job has before it, about; None if nobody knows.
        """
        self.writer, self.tallies, self.rank, self.total = writer, tallies, rank, total
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            # on a narrow terminal the bar alone gets shorter
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal or rank != 0,
            expand=True,
            # the thread that draws it takes turns with the one that computes
            refresh_per_second=1,
        )
        self.loggers: list[Any] = []
        self._all = Tally()
        self._looked = self._told = 0.0
        self._marks: deque[tuple[float, int]] = deque(maxlen=RATE_LINES)
        """Times, in seconds, and records that had ended, a minute apart."""

    def __enter__(self) -> "JobProgress":
        """Take what an earlier start left for one's own away, before ranks meet."""
        self.tallies.publish(self.rank, Tally())
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Give the terminal back, with the last state on it, and tell the loggers how it ended."""
        if self._marks:
            self._look()
            self._show()
            if kind is None:
                self._log()
        self.bar.stop()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock when the weights are loaded."""
        if trainer.is_global_zero:
            self.loggers = trainer.loggers
            self._told = time.monotonic()
            self._marks.append((self._told, 0))
            self.bar.start()
            self.task = self.bar.add_task(self.writer.record_noun, total=self.total, text=", ".join(self.told()))

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
        self.tick()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the numbers for the first rank."""
        self.tallies.publish(self.rank, self.writer.tally)

    def wait_for(self, ranks: Iterable["subprocess.Popen[bytes]"]) -> None:
        """Show where the job is until all these ranks have ended."""
        for process in ranks:
            while True:
                self.tick()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=self.tallies.seconds)
                    break

    def tick(self) -> None:
        """Look at the numbers, show them and tell of them, as far as it is time to."""
        now = time.monotonic()
        if now - self._looked >= self.tallies.seconds or len(self.tallies.files) == 1:
            self._looked = now
            self._look()
        if self.rank != 0:
            return
        self._show()
        if now - self._told >= LINE_SECONDS:
            self._told = now
            if not self.console.is_terminal:
                self.console.print(self.line(), highlight=False, soft_wrap=True)
            self._log()
            self._marks.append((now, self._all.processed))

    def _look(self) -> None:
        if self.rank == 0:
            self._all = self.tallies.sum(self.rank, self.writer.tally)
        else:
            self.tallies.publish(self.rank, self.writer.tally)

    def _show(self) -> None:
        self.bar.update(self.task, completed=self._all.processed, text=", ".join(self.told()))

    def rate(self) -> float:
        """Records an hour, over the last hour."""
        since, ended = self._marks[0]
        return (self._all.processed - ended) / max(time.monotonic() - since, 1e-9) * 3600

    def told(self) -> list[str]:
        """How fast, how long and how good."""
        tally, rate = self._all, self.rate()
        if not tally.processed:
            return ["the first are in flight"]
        told = [f"{rate:,.0f}/hour"] if rate else []
        if rate and self.total is not None and tally.processed < self.total:
            told.append(f"{duration((self.total - tally.processed) / rate)} left")
        if tally.scored:
            told.append(f"{tally.psnr_sum / tally.scored:.2f} dB")
        return [*told, f"{tally.failed:,} failed"]

    def line(self) -> str:
        """One line about the records so far."""
        ranks = len(self.tallies.files)
        prefix = f"[{ranks} ranks] " if ranks > 1 else ""
        of = "" if self.total is None else f" of about {self.total:,}"
        gap = [f"{self._all.gap_sum / self._all.gaps:.2f} dB below the VAE"] if self._all.gaps else []
        return f"{prefix}{self._all.processed:,}{of} {self.writer.record_noun}, {', '.join([*self.told(), *gap])}"

    def _log(self) -> None:
        """Tell Lightning's loggers, by the names that `nti-batch status --json` has."""
        tally, record_noun = self._all, self.writer.record_noun
        metrics = {"done": float(tally.done), "failed": float(tally.failed), f"{record_noun}_per_hour": self.rate()}
        if tally.scored:
            metrics[self.writer.psnr_name] = tally.psnr_sum / tally.scored
        if tally.gaps:
            metrics["gap"] = tally.gap_sum / tally.gaps
        for logger in self.loggers:
            logger.log_metrics(metrics, step=tally.processed)
            logger.save()


def duration(hours: float) -> str:
    """A time that people can take in."""
    if hours < 1.5:
        return f"{60 * hours:.0f} min" if hours > 1 / 60 else "under 1 min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
