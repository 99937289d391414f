"""What the parts of `nti-batch bench --full-size` share: settings, networks, figures found so far, rows."""

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from nti_batch.benchmarks.full_size import Family
from nti_batch.benchmarks.unet_calls import KINDS, Calls, Kind, Timing, matrix_rate
from nti_batch.benchmarks.update_counts import Method
from nti_batch.benchmarks.whole_job import Build, JobFigures
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion

Values = dict[str, float | str | None]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    part: str
    """What was measured."""

    values: Values
    """Figures by name; a name ends with its unit."""

    def to_json(self) -> dict[str, object]:
        """Return the part and its figures, to four digits."""
        rounded = {n: float(f"{v:.4g}") if isinstance(v, float) else v for n, v in self.values.items()}
        return {"part": self.part, **rounded}

    def line(self) -> str:
        """Return the line for a person."""
        shown = (f"{name.replace('_', ' ')} {_text(value)}" for name, value in self.values.items())
        return f"{self.part}: {', '.join(shown)}"


def _text(value: float | str | None) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


@dataclass(kw_only=True)
class FullSize:
    """Settings of the benchmark, and what its parts share."""

    build: Build
    """Builds a job from the arguments of `nti-batch invert`."""

    folder: Path
    """Empty folder for the checkpoint, the images and the runs."""

    family: Family
    precision: Precision
    batch_size: int
    device: torch.device
    minutes: float
    """Time after which no part starts that would take longer."""

    started: float = field(default_factory=time.monotonic)
    timings: dict[tuple[str, Kind], Timing] = field(default_factory=dict)
    """Calls with `batch_size` images, by the way in which they were made."""

    jobs: dict[tuple[str, Method], JobFigures] = field(default_factory=dict)
    reference_rates: dict[Precision, float] = field(default_factory=dict)
    """Images an hour of the reference loop."""

    @property
    def seconds_left(self) -> float:
        """Time that is left."""
        return 60 * self.minutes - (time.monotonic() - self.started)

    @property
    def device_name(self) -> str:
        """Name of the device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)

    @property
    def source(self) -> ModelSource:
        """Place of the checkpoint."""
        return ModelSource(str(self.folder / "model"))

    @property
    def shard(self) -> Path:
        """Shard of the images."""
        return self.folder / "images.tar"

    @cached_property
    def rate(self) -> float:
        """Rate of a matrix product, in TFLOP/s."""
        return matrix_rate(self.device)

    @cached_property
    def eager_networks(self) -> StableDiffusion:
        """The networks as they are loaded."""
        return StableDiffusion.load(self.source, self.precision)

    @cached_property
    def compiled_networks(self) -> StableDiffusion:
        """Networks that are compiled, which changes the layout of their weights."""
        return StableDiffusion.load(self.source, self.precision)

    def networks(self, is_compiled: bool) -> StableDiffusion:
        """The networks on the device."""
        return (self.compiled_networks if is_compiled else self.eager_networks).to(self.device)

    @cached_property
    def tflop(self) -> dict[Kind, float]:
        """Work of each kind of call for one image, in TFLOP."""
        return {kind: Calls(self.networks(False)).tflop(kind) for kind in KINDS}
