"""Stops a job in which so many images fail that the job itself must be wrong."""

import re
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nti_batch.jobs.tally import Tally
from nti_batch.jobs.writer import PartsWriter

JUDGED_FROM = 100
"""A share is judged when this many images have ended: of the first few, one would be much."""


class TooManyFailuresError(Exception):
    """More images have failed than the user allows."""


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """What `data.max_failures` allows."""

    text: str
    """As the user wrote it."""

    @classmethod
    def parse(cls, text: str) -> "FailureLimit":
        """Take a count, '100', or a share of the images, '5%'.

        Raises:
            ValueError: If it is neither.
        """
        if not re.fullmatch(r"\d+|\d+(\.\d+)?%", text):
            raise ValueError(f"data.max_failures is {text!r}, allowed: a count such as 100, or a share such as 5%")
        return cls(text)

    def is_exceeded(self, tally: Tally) -> bool:
        """Whether more images have failed than that."""
        if not self.text.endswith("%"):
            return tally.failed > int(self.text)
        return tally.processed >= JUDGED_FROM and 100 * tally.failed > float(self.text[:-1]) * tally.processed


class StopOnFailures(Callback):
    """Ends the job when the images that this rank has written since its start exceed the limit."""

    def __init__(self, writer: PartsWriter, limit: FailureLimit) -> None:
        """Watch what `writer` has written."""
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
        """Look at the tally.

        Raises:
            TooManyFailuresError: If it exceeds the limit.
        """
        tally = self.writer.tally
        if self.limit.is_exceeded(tally):
            last = self.writer.last_failure
            assert last is not None
            raise TooManyFailuresError(
                f"{tally.failed} of {tally.processed} images have failed, and data.max_failures is "
                f"{self.limit.text} (the last: {last.unit.shard}/{last.key} at stage {last.stage!r}: {last.error}); "
                "what is finished is committed: mend the input or allow more, and run the same command again, with "
                "--data.retry_failed=true to try these again"
            )
