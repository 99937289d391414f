"""How far a run is."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

from nti_batch.data.shard_reader import count_images
from nti_batch.data.shards import refuse_pipes, work_units
from nti_batch.output.inversions import InversionRun
from nti_batch.output.manifest import ManifestRow
from nti_batch.output.throughput import Throughput
from nti_batch.records import WorkUnit


class Status(Protocol):
    """How far any run is."""

    @property
    def missing(self) -> int:
        """Records of which there is no row."""

    @property
    def has_failures(self) -> bool:
        """Whether something ended as failed."""

    def lines(self) -> list[str]:
        """For a person."""

    def as_json(self) -> dict[str, object]:
        """The fields by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """What became of the input images of a run."""

    done: int
    failed: int
    damaged_shards: int
    """Input shards that could not be read to their end, or hold what belongs to no image."""

    missing: int
    """Images of the input that no manifest names."""

    images_per_hour: float | None
    """Over the images of the last hour of work; None before the first."""

    hours_left: float | None
    psnr: float | None
    """Mean reconstruction against the input, in dB."""

    psnr_vae: float | None
    """Mean VAE round trip against the input, in dB."""

    prompts_truncated: int
    """Inversions whose prompt the text encoder read only in part."""

    failures: tuple[tuple[str, int], ...]
    """Number of failures of each stage."""

    @property
    def has_failures(self) -> bool:
        """Whether an input ended as failed, an image or a shard."""
        return bool(self.failed or self.damaged_shards)

    def lines(self) -> list[str]:
        """For a person."""
        total = self.done + self.failed + self.missing
        lines = [f"{self.done} done, {self.failed} failed, {self.missing} missing of {total} images"]
        if self.images_per_hour is not None:
            left = f", {self.hours_left:.1f} hours left at this rate" if self.missing and self.hours_left else ""
            lines.append(f"{self.images_per_hour:.0f} images an hour{left}")
        if self.psnr is not None and self.psnr_vae is not None:
            gap = f"{abs(self.psnr_vae - self.psnr):.2f} dB {'above' if self.psnr > self.psnr_vae else 'below'}"
            lines.append(f"PSNR {self.psnr:.2f} dB against the input, {gap} the VAE's own {self.psnr_vae:.2f} dB")
        if self.damaged_shards:
            lines.append(f"{self.damaged_shards} of the shards damaged: what may lie behind the damage is not counted")
        if self.prompts_truncated:
            lines.append(f"{self.prompts_truncated} of the prompts longer than the text encoder reads, and cut")
        lines += [f"{count} failed at stage {stage!r}" for stage, count in self.failures]
        return lines

    def as_json(self) -> dict[str, object]:
        """The fields by name."""
        return dataclasses.asdict(self)


def units_of(run: InversionRun, shards: list[str] | None = None, allow_pipe: bool = False) -> list[WorkUnit]:
    """All work units of a run, in its own shards or in those at other addresses.

    Raises:
        ValueError: If it is no run, or if reading a shard would run a command and that is not allowed.
    """
    units_per_shard = run.settings()["data.units_per_shard"]
    assert isinstance(units_per_shard, int)
    urls = run.shards() if shards is None else shards
    if not allow_pipe:
        refuse_pipes(urls)
    return work_units(urls, units_per_shard)


def run_status(
    run: InversionRun, units: Sequence[WorkUnit], on_row: Callable[[Path, ManifestRow], None] = lambda path, row: None
) -> RunStatus:
    """Read the manifests of work units, and the headers of those input shards that are not finished.

    The rows of one manifest are in memory at a time.

    Args:
        run: The output folder.
        units: Those of whole shards, one after the other.
        note: Told of each manifest and row.

    Raises:
        ValueError: If a manifest is damaged, or an unfinished shard cannot be read.
    """
    rows, missing = _Rows(), 0
    for url, of_shard in groupby(units, key=lambda unit: unit.url):
        committed_of_open: dict[WorkUnit, int] = {}
        for unit in of_shard:
            committed = 0
            for path, row in run.located_rows(unit):
                rows.add(row)
                on_row(path, row)
                committed += bool(row.key)
            if not run.is_complete(unit):
                committed_of_open[unit] = committed
        if committed_of_open:
            images = count_images(url)
            expected = sum(len(range(unit.index, images, unit.count)) for unit in committed_of_open)
            missing += max(0, expected - sum(committed_of_open.values()))
    return rows.status(missing)


@dataclass(slots=True)
class _Rows:
    """Sums over rows."""

    done: int = 0
    damaged_shards: set[str] = field(default_factory=set)
    psnr: float = 0.0
    psnr_vae: float = 0.0
    prompts_truncated: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    pace: Throughput = field(default_factory=Throughput)

    def add(self, row: ManifestRow) -> None:
        if not row.key:
            self.damaged_shards.add(row.shard)
            return
        if row.status == "failed":
            self.failures[row.stage] += 1
            return
        self.done += 1
        self.psnr += row.psnr or 0.0
        self.psnr_vae += row.psnr_vae or 0.0
        self.prompts_truncated += row.prompt_truncated
        self.pace.add(row)

    def status(self, missing: int) -> RunStatus:
        rate = self.pace.per_hour()
        return RunStatus(
            done=self.done,
            failed=self.failures.total(),
            damaged_shards=len(self.damaged_shards),
            missing=missing,
            images_per_hour=rate,
            hours_left=missing / rate if rate else None,
            psnr=self.psnr / self.done if self.done else None,
            psnr_vae=self.psnr_vae / self.done if self.done else None,
            prompts_truncated=self.prompts_truncated,
            failures=tuple(self.failures.items()),
        )
