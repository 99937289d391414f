"""Ends a job in which so many records fail that the job itself must be wrong."""

import re
from dataclasses import dataclass
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer

from nti_batch.jobs.tally import Tally
from nti_batch.jobs.writer import RecordWriter

MIN_PROCESSED = 100
"""Processed records from which on a percentage is judged."""


class TooManyFailuresError(Exception):
    """More records have failed than the user allows."""


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """Limit of `--data.max_failures`."""

    text: str
    """The limit as the user wrote it."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a count, '100', or a percentage, '5%'.

        Raises:
            ValueError: If the text is neither.
        """
        if not re.fullmatch(r"\d+|\d+(\.\d+)?%", text):
            raise ValueError(f"data.max_failures is {text!r}, allowed: a count such as 100, or a share such as 5%")
        return cls(text)

    def is_exceeded(self, tally: Tally) -> bool:
        """Whether more records have failed than the limit allows."""
        if not self.text.endswith("%"):
            return tally.failed > int(self.text)
        return tally.processed >= MIN_PROCESSED and 100 * tally.failed > float(self.text[:-1]) * tally.processed


class FailureLimitCallback(Callback):
    """Ends the job when the records that this rank has written exceed the limit."""

    def __init__(self, writer: RecordWriter, limit: FailureLimit) -> None:
        """Take the writer whose records count."""
        self.writer, self.limit = writer, limit

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Check the limit.

        Raises:
            TooManyFailuresError: If it is exceeded.
        """
        tally, last = self.writer.tally, self.writer.last_failure
        if self.limit.is_exceeded(tally):
            assert last is not None
            raise TooManyFailuresError(
                f"{tally.failed} of {tally.processed} {self.writer.run.kind.record_noun} have failed, and "
                f"data.max_failures is {self.limit.text} (the last: {last.unit.shard}/{last.key} at stage "
                f"{last.stage!r}: {last.error}); what is finished is committed: mend the input or allow more, and run "
                "the same command again, with --data.retry_failed=true to try these again"
            )
