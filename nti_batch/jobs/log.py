"""What a job tells in words: a line for each record in a file of each rank, warnings and errors on the terminal too.

OUT/log/rank-3.log                 all of it, a line each, of every start of the job
[rank 3/8] nti-batch: ...          on the terminal, or in a scheduler's one log; the rank where there are several
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning.pytorch import Callback, LightningModule, Trainer

from nti_batch.output.manifest import member_name
from nti_batch.records import EditedImage, Failure, Inversion, Outcome

logger = logging.getLogger(__name__)


def rank_file(out: Path, rank: int, part: int, parts: int, ending: str) -> Path:
    """Where a rank writes about itself; jobs that share a folder have a part of it each."""
    job = f"part-{part}of{parts}." if parts > 1 else ""
    return out / "log" / f"{job}rank-{rank}{ending}"


def rank_prefix(rank: int, ranks: int) -> str:
    """What stands before the lines of one rank among several."""
    return f"[rank {rank}/{ranks}] " if ranks > 1 else ""


class Terminal(logging.Handler):
    """Prints on what is stderr at the time: a live bar replaces it, to keep below what is printed."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        print(self.format(record), file=sys.stderr)


class LogFile(logging.FileHandler):
    """Appends to a file; one that cannot be written ends no job, and is told of once."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; the file is made with the first."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on without the file."""
        logging.getLogger("nti_batch").removeHandler(self)
        logger.warning("%s cannot be written (%s): the job goes on without it", self.baseFilename, sys.exc_info()[1])


@contextmanager
def job_log(file: Path, prefix: str) -> Iterator[None]:
    """Send what the package logs to the terminal, from warnings on, and to a file, all of it.

    Args:
        file: Appended to.
        prefix: Of lines on the terminal.
    """
    package = logging.getLogger("nti_batch")
    terminal = Terminal(logging.WARNING)
    terminal.setFormatter(logging.Formatter(f"{prefix}nti-batch: %(message)s"))
    log_file = LogFile(file, encoding="utf-8", errors="backslashreplace", delay=True)
    log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    with suppress(OSError):  # then the first line cannot be written, and that is told
        file.parent.mkdir(exist_ok=True)
    before = package.level
    package.setLevel(logging.INFO)
    for handler in (terminal, log_file):
        package.addHandler(handler)
    try:
        yield
    finally:
        package.setLevel(before)
        for handler in (terminal, log_file):
            package.removeHandler(handler)
            with suppress(OSError):  # of a full disk, which was told
                handler.close()


def record_line(outcome: Outcome) -> str | None:
    """What the log says of a record, without line ends; None for what is no record."""
    match outcome:
        case Inversion():
            told = f"psnr={outcome.psnr:.2f} gap={outcome.psnr_vae - outcome.psnr:.2f} "
            told += f"inner_steps={sum(outcome.inner_steps)} seconds={outcome.seconds:.1f}"
            return f"done {_name(outcome)} {told}"
        case EditedImage():
            told = "" if outcome.psnr_unedited is None else f"psnr_unedited={outcome.psnr_unedited:.2f} "
            return f"done {_name(outcome)} {told}seconds={outcome.seconds:.1f}"
        case Failure():
            return f"failed {_name(outcome)} stage={outcome.stage} error={' '.join(outcome.error.split())}"
    return None


def _name(outcome: Inversion | EditedImage | Failure) -> str:
    """Shard and record, the latter as its members are called in a tar; what is special becomes %XX."""
    name = "" if isinstance(outcome, Inversion) else outcome.name
    return f"{quote(outcome.unit.shard, safe='')}/{member_name(outcome.key, name)}"


class RecordLog(Callback):
    """Logs a line for each record that this rank has written."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[Outcome],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log what the step gave."""
        for outcome in outputs:
            if line := record_line(outcome):
                logger.info("%s", line)
