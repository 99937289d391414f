"""Numbers of all ranks of a job: counts, records an hour, time left.

Each rank publishes its counts in OUT/log/rank-3.json, and the first rank adds them up. Ranks differ by hours, so none
may wait for another.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nti_batch.files import replace_file
from nti_batch.jobs.tally import Tally
from nti_batch.jobs.writer import RecordWriter
from nti_batch.json_object import JsonObject
from nti_batch.output.run_kind import RunKind
from nti_batch.output.throughput import Throughput
from nti_batch.phrases import format_duration

MAX_REFRESH_SECONDS = 60.0
MAX_TALLY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RankTallies:
    """The counts of all ranks of a job, one file for each rank."""

    files: list[Path]
    """Files by rank; a rank without a file has written nothing yet."""

    @property
    def refresh_seconds(self) -> float:
        """Time between two refreshes: about one file a second is read and written, however many ranks there are."""
        return min(MAX_REFRESH_SECONDS, float(len(self.files)))

    def publish(self, rank: int, tally: Tally) -> None:
        """Write a rank's counts for the first rank. An error of the file has no other effect than old numbers."""
        if len(self.files) > 1:
            with suppress(OSError):
                replace_file(self.files[rank], json.dumps(tally.to_json()))

    def sum(self, rank: int, tally: Tally) -> Tally:
        """The counts of all ranks, given the present ones of this rank."""
        for other, file in enumerate(self.files):
            if other != rank:
                with suppress(OSError, ValueError):
                    tally = tally + Tally.from_json(JsonObject.read(file, MAX_TALLY_BYTES))
        return tally


class JobMeter:
    """Progress of a job in numbers."""

    def __init__(
        self, writer: RecordWriter, tallies: RankTallies, rank: int, total: int | None, earlier: Throughput
    ) -> None:
        """Start with no record.

        Args:
            writer: Writer of this process.
            tallies: Counts of all ranks.
            rank: Rank of this process.
            total: Approximate number of missing records of the job; None if it is unknown.
            earlier: Times of the records of earlier jobs, which the rate counts until an hour of work is over.
        """
        self.writer, self.tallies, self.rank, self.total, self.earlier = writer, tallies, rank, total, earlier
        self.tally = Tally()
        """Counts of all ranks on the first rank."""

        self._refreshed = 0.0

    @property
    def kind(self) -> RunKind[Any, Any, Any]:
        """Kind of the run."""
        return self.writer.run.kind

    def reset(self) -> None:
        """Replace the counts that an earlier start has left in this rank's file."""
        self.tallies.publish(self.rank, Tally())

    def refresh(self, force: bool = False) -> None:
        """Publish this rank's counts, or on the first rank add up those of all, unless that was done just now."""
        now = time.monotonic()
        if force or len(self.tallies.files) == 1 or now - self._refreshed >= self.tallies.refresh_seconds:
            self._refreshed = now
            if self.rank == 0:
                self.tally = self.tallies.sum(self.rank, self.writer.tally)
            else:
                self.tallies.publish(self.rank, self.writer.tally)

    def per_hour(self) -> float | None:
        """Finished records an hour over the last hour of work, as `nti-batch status` counts them; None before one."""
        return (self.tally.throughput + self.earlier).per_hour()

    def summary(self) -> list[str]:
        """Rate, time left, quality and failures as text."""
        tally, rate = self.tally, self.per_hour()
        if not tally.processed:
            return ["the first records are in progress"]
        parts = [f"{rate:,.0f}/hour"] if rate else []
        if rate and self.total is not None and tally.processed < self.total:
            parts.append(f"{format_duration((self.total - tally.processed) / rate * 3600)} left")
        if (psnr := tally.mean(self.kind.psnr)) is not None:
            parts.append(f"{psnr:.2f} dB")
        return [*parts, f"{tally.failed:,} failed"]

    def line(self) -> str:
        """The progress as one line."""
        ranks = len(self.tallies.files)
        prefix = f"[{ranks} ranks] " if ranks > 1 else ""
        of = "" if self.total is None else f" of about {self.total:,}"
        below = self.tally.mean("psnr_below_vae")
        parts = self.summary() + ([] if below is None else [f"{below:.2f} dB below the VAE bound"])
        return f"{prefix}{self.tally.processed:,}{of} {self.kind.record_noun}, {', '.join(parts)}"

    def metrics(self) -> dict[str, float]:
        """The progress for Lightning's loggers, under the names that `nti-batch status --json` uses."""
        counts = {"done": float(self.tally.done), "failed": float(self.tally.failed)}
        rate = {f"{self.kind.record_noun}_per_hour": self.per_hour() or 0.0}
        return counts | rate | {name: total.mean for name, total in self.tally.totals.items()}
