"""Counts of the records that a job has written."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from nti_batch.json_object import Json, JsonObject
from nti_batch.output.throughput import MAX_SPANS, Throughput
from nti_batch.records import EditedImage, Failure, Inversion


@dataclass(frozen=True, slots=True)
class Total:
    """Sum of a metric over the records that have it."""

    sum: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        """Mean of the metric; there must be a record with it."""
        return self.sum / self.count

    def __add__(self, other: "Total") -> "Total":
        """The sum over both sets of records."""
        return Total(self.sum + other.sum, self.count + other.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Records written since the start of a job, by one rank or by several together."""

    done: int = 0
    failed: int = 0
    totals: Mapping[str, Total] = field(default_factory=dict)
    """Sums of the metrics of the finished records, by name."""

    throughput: Throughput = field(default_factory=Throughput)

    @property
    def processed(self) -> int:
        """Records that are done or failed."""
        return self.done + self.failed

    def mean(self, metric: str) -> float | None:
        """Mean of a metric over the finished records that have it; None if none has."""
        return self.totals[metric].mean if metric in self.totals else None

    def __add__(self, other: "Tally") -> "Tally":
        """The counts of two sets of records."""
        names = {**self.totals, **other.totals}
        totals = {name: self.totals.get(name, Total()) + other.totals.get(name, Total()) for name in names}
        return Tally(
            done=self.done + other.done,
            failed=self.failed + other.failed,
            totals=totals,
            throughput=self.throughput + other.throughput,
        )

    @classmethod
    def of(cls, record: Inversion | EditedImage | Failure) -> "Tally":
        """The count of one record."""
        if isinstance(record, Failure):
            return cls(failed=1)
        now = time.time()
        return cls(
            done=1,
            totals={name: Total(score, 1) for name, score in record.metrics().items()},
            throughput=Throughput([(now, now - record.seconds)]),
        )

    def to_json(self) -> dict[str, Json]:
        """The counts as a rank publishes them."""
        totals: dict[str, Json] = {name: [total.sum, total.count] for name, total in self.totals.items()}
        spans: list[Json] = [[round(time, 3) for time in span] for span in self.throughput.spans]
        return {"done": self.done, "failed": self.failed, "totals": totals, "spans": spans}

    @classmethod
    def from_json(cls, values: JsonObject) -> "Tally":
        """Read what `to_json` wrote.

        Raises:
            ValueError: If it is damaged.
        """
        totals = values.value("totals")
        # the names become columns of Lightning's loggers
        if not isinstance(totals, dict) or not all(map(str.isidentifier, totals)):
            values.reject("totals", "an object with a sum and a count for each metric")
        sums = {}
        for name, total in totals.items():
            match total:
                case [int() | float() as metric, int(count)] if abs(metric) < 1e300 and 0 < count < 1 << 62:
                    sums[name] = Total(metric, count)
                case _:
                    values.reject("totals", "a sum and a count for each metric")
        spans = values.value("spans")
        if not isinstance(spans, list) or len(spans) > MAX_SPANS:
            values.reject("spans", f"a list of at most {MAX_SPANS} times")
        throughput = Throughput()
        for span in spans:
            match span:
                case [int() | float() as finished, int() | float() as started] if 0 <= started <= finished < 1e12:
                    throughput.add(finished, finished - started)
                case _:
                    values.reject("spans", "finish and start of each record")
        counts = (values.integer(name, 0, 1 << 62) for name in ("done", "failed"))
        return cls(**dict(zip(("done", "failed"), counts, strict=True)), totals=sums, throughput=throughput)
