"""Records an hour, from the rows of manifests."""

from collections import defaultdict
from dataclasses import dataclass, field
from math import inf

from nti_batch.output.manifest_rows import Row


@dataclass(slots=True)
class _Minute:
    """Records that finished in one minute."""

    records: int = 0
    begin: float = inf
    """Start of the first of them, in seconds since 1970."""

    latest: float = 0.0


@dataclass(slots=True)
class Throughput:
    """Records an hour, from rows of which there may be millions: minutes are kept, not rows."""

    minutes: defaultdict[int, _Minute] = field(default_factory=lambda: defaultdict(_Minute))

    def add(self, row: Row) -> None:
        """Count a finished record."""
        minute = self.minutes[int(row.finished // 60)]
        minute.records += 1
        minute.begin = min(minute.begin, row.finished - (row.seconds or 0.0))
        minute.latest = max(minute.latest, row.finished)

    def per_hour(self) -> float | None:
        """Records of the hour before the latest one, over the time since the first of them started."""
        if not self.minutes:
            return None
        latest = self.minutes[max(self.minutes)].latest
        recent = [minute for minute in self.minutes.values() if minute.latest > latest - 3600]
        begin = max(latest - 3600, min(minute.begin for minute in recent))
        return sum(minute.records for minute in recent) / max(latest - begin, 1e-9) * 3600
