"""How far a run of edits is."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from nti_batch.output.manifest import EditRow
from nti_batch.output.throughput import Throughput
from nti_batch.records import EditRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class EditStatus:
    """What became of the edits that were asked for."""

    done: int
    failed: int
    missing: int
    """Edits that no manifest names."""

    edits_per_hour: float | None
    """Over the edits of the last hour of work; None before the first."""

    scored: int
    """Edits with scores of the unedited part."""

    psnr_unedited: float | None
    """Mean against the input, in dB."""

    ssim_unedited: float | None
    mse_unedited: float | None
    failures: tuple[tuple[str, int], ...]
    """Number of failures of each stage."""

    @property
    def has_failures(self) -> bool:
        """Whether an edit ended as failed."""
        return bool(self.failed)

    def lines(self) -> list[str]:
        """For a person."""
        total = self.done + self.failed + self.missing
        lines = [f"{self.done} done, {self.failed} failed, {self.missing} missing of {total} edits"]
        if self.edits_per_hour is not None:
            lines.append(f"{self.edits_per_hour:.0f} edits an hour")
        if self.scored:
            lines.append(
                f"unedited part of {self.scored} against the input: PSNR {self.psnr_unedited:.2f} dB, "
                f"SSIM {self.ssim_unedited:.3f}, MSE {self.mse_unedited:.5f}"
            )
        lines += [f"{count} failed at stage {stage!r}" for stage, count in self.failures]
        return lines

    def as_json(self) -> dict[str, object]:
        """The fields by name."""
        return dataclasses.asdict(self)


def edit_status(units: Iterable[tuple[Sequence[EditRow], Sequence[EditRequest]]]) -> EditStatus:
    """Sum up work units, each with its rows and what is missing of it."""
    failures: Counter[str] = Counter()
    scores: dict[str, list[float]] = {"psnr_unedited": [], "ssim_unedited": [], "mse_unedited": []}
    done, missing, pace = 0, 0, Throughput()
    for rows, missing_of_unit in units:
        missing += len(missing_of_unit)
        for row in rows:
            if row.status == "failed":
                failures[row.stage] += 1
                continue
            done += 1
            pace.add(row)
            for name, values in scores.items():
                if (value := getattr(row, name)) is not None:
                    values.append(value)
    return EditStatus(
        done=done,
        failed=failures.total(),
        missing=missing,
        edits_per_hour=pace.per_hour(),
        scored=len(scores["psnr_unedited"]),
        failures=tuple(failures.items()),
        **{name: fmean(values) if values else None for name, values in scores.items()},
    )
