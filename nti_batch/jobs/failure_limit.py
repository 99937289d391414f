"""Ends a job in which so many records fail that the job itself must be wrong."""

import re
from dataclasses import dataclass
from typing import Self

from nti_batch.jobs.tally import Tally
from nti_batch.records import Failure

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

    def check(self, tally: Tally, last: Failure, record_noun: str) -> None:
        """Check the limit after a failure.

        Args:
            tally: Records that this rank has written.
            last: The failure.
            record_noun: Plural noun for the records.

        Raises:
            TooManyFailuresError: If the limit is exceeded.
        """
        if self.is_exceeded(tally):
            raise TooManyFailuresError(
                f"{tally.failed} of {tally.processed} {record_noun} have failed, and data.max_failures is {self.text} "
                f"(the last: {last.unit.shard}/{last.key} at stage {last.stage!r}: {last.error}); what is finished is "
                "committed: mend the input or allow more, and run the same command again, with "
                "--data.retry_failed=true to try these again"
            )
