"""Log of a job: a line for each record in a file of each rank, and warnings and errors on the terminal.

OUT/log/rank-3.log                 every line, of every start of the job
[rank 3/8] nti-batch: ...          on the terminal or in a scheduler's log; the rank only if there are several
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from nti_batch.output.manifest_rows import member_name
from nti_batch.records import EditedImage, Failure, Inversion
from nti_batch.terminal import LineFormatter, terminal_log

logger = logging.getLogger(__name__)


def rank_prefix(rank: int, ranks: int) -> str:
    """Prefix of a rank's lines on the terminal."""
    return f"[rank {rank}/{ranks}] " if ranks > 1 else ""


class LogFileHandler(logging.FileHandler):
    """Appends to a file. An error of the file is reported once and ends no job."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; the first one makes the file."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Continue without the file."""
        logging.getLogger("nti_batch").removeHandler(self)
        logger.warning("%s cannot be written (%s): the job runs without it", self.baseFilename, sys.exc_info()[1])


@contextmanager
def job_log(file: Path, prefix: str) -> Iterator[None]:
    """Send the package's log to a file, and its warnings and errors to the terminal.

    Args:
        file: Path of the log file, which is appended to.
        prefix: Prefix of lines on the terminal.
    """
    package = logging.getLogger("nti_batch")
    log_file = LogFileHandler(file, encoding="utf-8", delay=True)
    log_file.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    with suppress(OSError):  # the first line then fails, and reports it
        file.parent.mkdir(exist_ok=True)
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(log_file)
    try:
        with terminal_log(prefix):
            yield
    finally:
        package.setLevel(level)
        package.removeHandler(log_file)
        with suppress(OSError):  # a full disk, which was reported
            log_file.close()


def record_line(record: Inversion | EditedImage | Failure) -> str:
    """The line of a record, without line breaks."""
    name = f"{quote(record.unit.shard, safe='')}/{member_name(record.key, record.name)}"
    if isinstance(record, Failure):
        return f"failed {name} stage={record.stage} error={' '.join(record.error.split())}"
    scores = (f"{metric}={_shown(score)} " for metric, score in record.metrics().items())
    return f"done {name} {''.join(scores)}seconds={record.seconds:.1f}"


def _shown(score: float) -> str:
    return str(score) if isinstance(score, int) else f"{score:.2f}"
