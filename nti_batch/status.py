"""How far a run is."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from nti_batch.inversions import InversionRun
from nti_batch.manifest import ManifestRow
from nti_batch.records import WorkUnit
from nti_batch.stream import count_images, work_units


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """What became of the input images of a run."""

    done: int
    failed: int
    missing: int
    """Images of the input that no manifest names."""

    images_per_hour: float | None
    """Over the images of the last hour of work; None before the first."""

    hours_left: float | None
    psnr: float | None
    """Mean reconstruction against the input, in dB."""

    psnr_vae: float | None
    """Mean VAE round trip against the input, in dB."""

    failures: tuple[tuple[str, int], ...]
    """Number of failures of each stage."""

    def lines(self) -> list[str]:
        """For a person."""
        total = self.done + self.failed + self.missing
        lines = [f"{self.done} done, {self.failed} failed, {self.missing} missing of {total} images"]
        if self.images_per_hour is not None:
            left = f", {self.hours_left:.1f} hours left at this rate" if self.missing and self.hours_left else ""
            lines.append(f"{self.images_per_hour:.0f} images an hour{left}")
        if self.psnr is not None and self.psnr_vae is not None:
            gap = self.psnr_vae - self.psnr
            lines.append(
                f"PSNR {self.psnr:.2f} dB against the input, {gap:.2f} dB below the VAE's own {self.psnr_vae:.2f} dB"
            )
        lines += [f"{count} failed at stage {stage!r}" for stage, count in self.failures]
        return lines

    def as_json(self) -> dict[str, object]:
        """The fields by name."""
        return dataclasses.asdict(self)


def units_of(run: InversionRun, shards: list[str] | None = None) -> list[WorkUnit]:
    """All work units of a run, in its own shards or in those at other addresses."""
    slices = run.settings()["data.slices"]
    assert isinstance(slices, int)
    return work_units(run.shards() if shards is None else shards, slices)


def run_status(out: str | Path, units: Sequence[WorkUnit] | None = None) -> RunStatus:
    """Read a run's manifests, and the headers of those input shards that are not finished.

    Args:
        out: The output folder.
        units: Work units to look at; all of the run if None.

    Raises:
        ValueError: If the folder is no run, a manifest is damaged, or an unfinished shard cannot be read.
    """
    run = InversionRun(Path(out))
    if units is None:
        units = units_of(run)
    rows_of = {unit: run.rows(unit) for unit in units}
    rows = [row for unit in units for row in rows_of[unit]]
    done = [row for row in rows if row.status == "done"]
    missing = 0
    for url in dict.fromkeys(unit.url for unit in units):
        open_units = [unit for unit in units if unit.url == url and not run.is_complete(unit)]
        if open_units:
            images = count_images(url)
            expected = sum(len(range(unit.index, images, unit.count)) for unit in open_units)
            missing += max(0, expected - sum(len([r for r in rows_of[unit] if r.key]) for unit in open_units))
    rate = _images_per_hour(done)
    stages = [row.stage for row in rows if row.status == "failed"]
    return RunStatus(
        done=len(done),
        failed=len(rows) - len(done),
        missing=missing,
        images_per_hour=rate,
        hours_left=missing / rate if rate else None,
        psnr=fmean(r.psnr for r in done if r.psnr is not None) if done else None,
        psnr_vae=fmean(r.psnr_vae for r in done if r.psnr_vae is not None) if done else None,
        failures=tuple((stage, stages.count(stage)) for stage in dict.fromkeys(stages)),
    )


def _images_per_hour(done: list[ManifestRow]) -> float | None:
    """Images that finished in the last hour before the latest one, over the time since the first of them began."""
    if not done:
        return None
    latest = max(row.finished for row in done)
    recent = [row for row in done if row.finished > latest - 3600]
    begin = max(latest - 3600, min(row.finished - (row.seconds or 0) for row in recent))
    return len(recent) / max(latest - begin, 1e-9) * 3600
