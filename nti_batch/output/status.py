"""How far a run is."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nti_batch.json_object import Json
from nti_batch.output.manifest_rows import AnyRow, EditRow, Row
from nti_batch.output.run_kind import RunKind
from nti_batch.output.throughput import Throughput
from nti_batch.phrases import and_more
from nti_batch.records import Failure

FAILURES_SHOWN = 20
"""Failed records that are listed."""


@dataclass(frozen=True, slots=True)
class FailedRecord:
    """A failed record, or a damaged shard."""

    id: str
    """'shard/key', with the name of an edit in brackets; of a damaged shard its name."""

    stage: str
    error: str

    @classmethod
    def of_failure(cls, failure: Failure) -> "FailedRecord":
        """The record of a failure that is not committed."""
        name = f"{failure.unit.shard}/{failure.key}" if failure.key else failure.unit.shard
        return cls(f"{name} ({failure.name})" if failure.name else name, failure.stage, failure.error)

    @classmethod
    def of_row(cls, row: Row) -> "FailedRecord":
        """The record of a failed row."""
        name = f"{row.shard}/{row.key}" if row.key else row.shard
        edit = f" ({row.name})" if isinstance(row, EditRow) and row.key else ""
        return cls(f"{name}{edit}", row.stage, row.error)


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """Numbers of a shard's records by their outcome."""

    shard: str
    done: int
    failed: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Outcomes of the records of a run."""

    record_noun: str
    done: int
    failed: int
    damaged_shards: int
    """Input shards that could not be read to their end, or hold files that belong to no image."""

    missing: int
    """Records without a row."""

    per_hour: float | None
    """Records an hour over the last hour of work; None before the first."""

    prompts_truncated: int
    """Inversions whose prompt the text encoder reads only in part."""

    scored: int
    """Records with scores."""

    metrics: Mapping[str, float]
    """Means of the scores by name, each over the records that have it."""

    failures: Mapping[str, int]
    """Number of failures at each stage."""

    failed_records: Sequence[FailedRecord]
    """The first `FAILURES_SHOWN` failed records and damaged shards."""

    missing_parts: Sequence[str]
    """Files of committed parts that are not there."""

    shards: Sequence[ShardStatus]

    @property
    def has_failures(self) -> bool:
        """Whether a record or a shard is committed as failed."""
        return bool(self.failed or self.damaged_shards)

    @property
    def hours_left(self) -> float | None:
        """Hours that the missing records take at the present rate; None before the first."""
        return self.missing / self.per_hour if self.per_hour else None

    def lines(self) -> list[str]:
        """The status as text."""
        total = self.done + self.failed + self.missing
        lines = [f"{self.done} done, {self.failed} failed, {self.missing} missing of {total} {self.record_noun}"]
        if self.per_hour is not None:
            left = f", {self.hours_left:.1f} hours left at this rate" if self.missing and self.hours_left else ""
            lines.append(f"{self.per_hour:.0f} {self.record_noun} an hour{left}")
        lines += describe_metrics(self.metrics, self.scored)
        if self.damaged_shards:
            lines.append(f"{self.damaged_shards} shards are damaged; images behind the damage are not counted")
        if self.prompts_truncated:
            lines.append(
                f"prompts that were truncated to the length that the text encoder reads: {self.prompts_truncated}"
            )
        lines += [f"{count} failed at stage {stage!r}" for stage, count in self.failures.items()]
        if self.missing_parts:
            parts = and_more(self.missing_parts, FAILURES_SHOWN)
            lines.append(f"{len(self.missing_parts)} files of parts are missing: {parts}; `nti-batch verify` says more")
        return lines

    def table_lines(self) -> list[str]:
        """A table with a line for each shard as text."""
        lines = [(*map(str, (s.done, s.failed, s.missing)), s.shard) for s in self.shards]
        table = [("done", "failed", "missing", "shard"), *lines]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)][:-1]
        return ["  ".join([*map(str.rjust, numbers, widths), shard]) for *numbers, shard in table]

    def failure_lines(self, folder: str) -> list[str]:
        """The failed records with their reasons as text.

        Args:
            folder: Folder of the run's manifests.
        """
        lines = [f"failed {record.id}: {record.stage}: {record.error}" for record in self.failed_records]
        if more := self.failed + self.damaged_shards - len(self.failed_records):
            lines.append(f"and {more} more: rows with the status 'failed' in {folder}/*.jsonl")
        return lines

    def to_json(self) -> dict[str, Json]:
        """The status as `nti-batch status --json` prints it."""
        return {
            "done": self.done,
            "failed": self.failed,
            "damaged_shards": self.damaged_shards,
            "missing": self.missing,
            f"{self.record_noun}_per_hour": self.per_hour,
            "hours_left": self.hours_left,
            "prompts_truncated": self.prompts_truncated,
            "scored": self.scored,
            **self.metrics,
            "failures": dict(self.failures),
            "failed_records": [asdict(record) for record in self.failed_records],
            "missing_parts": list(self.missing_parts),
        }


def describe_metrics(metrics: Mapping[str, float], scored: int) -> list[str]:
    """Mean scores as text."""
    if "psnr" in metrics:
        below = metrics["psnr_vae"] - metrics["psnr"]
        side = "above" if below < 0 else "below"
        vae = metrics["psnr_vae"]
        psnr = f"PSNR {metrics['psnr']:.2f} dB against the input"
        return [f"{psnr}, {abs(below):.2f} dB {side} the VAE bound of {vae:.2f} dB"]
    if "psnr_unedited" in metrics:
        return [
            f"unedited part of {scored} against the input: PSNR {metrics['psnr_unedited']:.2f} dB, "
            f"SSIM {metrics['ssim_unedited']:.3f}, MSE {metrics['mse_unedited']:.5f}"
        ]
    return []


@dataclass(slots=True)
class RowCounts:
    """Sums over rows, of which there may be millions."""

    done: int = 0
    damaged_shards: set[str] = field(default_factory=set)
    prompts_truncated: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    totals: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    scored: Counter[str] = field(default_factory=Counter)
    failed_records: list[FailedRecord] = field(default_factory=list)
    throughput: Throughput = field(default_factory=Throughput)

    def add(self, row: Row) -> None:
        """Count a row."""
        if not row.key:
            if row.status == "failed" and row.shard not in self.damaged_shards:
                self.damaged_shards.add(row.shard)
                self._list(row)
        elif row.status == "failed":
            self.failures[row.stage] += 1
            self._list(row)
        else:
            self.done += 1
            self.throughput.add(row.finished, row.seconds)
            self.prompts_truncated += row.has_truncated_prompt
            for name, score in row.metrics().items():
                self.totals[name] += score
                self.scored[name] += 1

    def _list(self, row: Row) -> None:
        if len(self.failed_records) < FAILURES_SHOWN:
            self.failed_records.append(FailedRecord.of_row(row))

    def status(
        self, kind: RunKind[Any, AnyRow, Any], shards: Sequence[ShardStatus], missing_parts: Sequence[str]
    ) -> RunStatus:
        """The status, given that of each shard, and the missing files of parts."""
        return RunStatus(
            record_noun=kind.record_noun,
            done=self.done,
            failed=self.failures.total(),
            damaged_shards=len(self.damaged_shards),
            missing=sum(shard.missing for shard in shards),
            per_hour=self.throughput.per_hour(),
            prompts_truncated=self.prompts_truncated,
            scored=self.scored[kind.psnr],
            metrics={name: total / self.scored[name] for name, total in self.totals.items()},
            failures=dict(self.failures),
            failed_records=self.failed_records,
            missing_parts=missing_parts,
            shards=shards,
        )
