"""Records an hour: finished records over the time in which at least one of them was in progress.

The time between two jobs does not count, nor do records that have failed. The rate covers the last hour of work: the
mean over a week would not show that the job is slow today.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop, nlargest

MAX_SPANS = 1 << 13
"""Records whose times are kept, the last to finish; with more in an hour the rate covers a shorter time."""

WINDOW = 3600.0
"""Seconds of work that the rate covers."""

Span = tuple[float, float]
"""Finish and start of a record, in seconds since 1970."""


@dataclass(slots=True)
class Throughput:
    """The times of the last records."""

    spans: list[Span] = field(default_factory=list)
    """A heap."""

    def add(self, finished: float, seconds: float | None) -> None:
        """Count a finished record, which may come in any order.

        Args:
            finished: Time of its end, in seconds since 1970.
            seconds: Duration; None if it is unknown.
        """
        span = finished, finished - (seconds or 0.0)
        if len(self.spans) < MAX_SPANS:
            heappush(self.spans, span)
        else:
            heappushpop(self.spans, span)

    def __add__(self, other: "Throughput") -> "Throughput":
        """The times of both sets of records."""
        return Throughput(sorted(nlargest(MAX_SPANS, [*self.spans, *other.spans])))

    def per_hour(self) -> float | None:
        """Records an hour; None before the first."""
        active, count = _recent(sorted(self.spans, reverse=True))
        return count / active * 3600 if active else None


def _recent(spans: Sequence[Span]) -> tuple[float, int]:
    """Length of the last `WINDOW` seconds of work, and the number of records that finished in them.

    Args:
        spans: Times of the records, the latest first.
    """
    active, begin = 0.0, spans[0][0] if spans else 0.0
    for number, (finished, started) in enumerate(spans):
        if active >= WINDOW:
            return active, number
        begin = min(begin, finished)  # nothing was in progress in between
        active, begin = active + max(0.0, begin - started), min(begin, started)
    return active, len(spans)
