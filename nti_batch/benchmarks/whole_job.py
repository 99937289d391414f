"""Runs the job itself, from shard to committed part, and measures where its time goes."""

import gc
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from nti_batch.benchmarks.timing import synchronize
from nti_batch.benchmarks.update_counts import fixed_updates
from nti_batch.diffusion.clock import DeviceClock
from nti_batch.jobs.invert_module import InversionModule
from nti_batch.jobs.run import Job, predict
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output import serialization
from nti_batch.output.part import PartWriter
from nti_batch.plans import missing_images

HOST: dict[str, list[tuple[Any, str]]] = {
    "decoding": [(missing_images, "decode_sample")],
    "packing": [(serialization, "pack_tensors")],
    "writing": [(PartWriter, "add_encoded"), (PartWriter, "commit")],
}
"""Functions that take time of the host, by what they do."""

DEVICE: dict[str, list[tuple[Any, str]]] = {
    "VAE": [(StableDiffusion, "encode_images"), (StableDiffusion, "decode_latents")],
    "text": [(StableDiffusion, "embed_prompts")],
}
"""Methods that take time of the device beside the UNet."""

Build = Callable[[Sequence[str], StopSignals], Job]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFigures:
    """Figures of a job without its start-up."""

    images: int
    images_per_hour: float
    seconds: float
    """Time from the first read to the last commit, without compiling."""

    start_seconds: float
    """Part of it before the first image is encoded."""

    end_seconds: float
    """Part of it after the last image is decoded."""

    device_seconds: dict[str, float]
    """Time of the device for an image, by what it does."""

    host_seconds: dict[str, float]
    """Time of the host for an image, by what it does; a part of it may pass while the device works."""

    forwards: float
    backwards: float
    """Passes of the UNet for an image."""

    warm_up_seconds: float
    """Time of compiling and capturing."""

    peak_bytes: int | None
    """Peak memory of a GPU; None without one."""

    @property
    def working_seconds(self) -> float:
        """Time between start and end."""
        return self.seconds - self.start_seconds - self.end_seconds

    @property
    def device_idle(self) -> float:
        """Share of the time between start and end in which the device has nothing to do."""
        return 1 - self.images * sum(self.device_seconds.values()) / self.working_seconds


@dataclass(slots=True)
class Moments:
    """When a job does what, on the clock of `time.perf_counter`, and how long it compiles."""

    first_encoding: float | None = None
    warm_up_seconds: float = 0.0
    last_decoding: float = 0.0


def run_job(build: Build, arguments: Sequence[str], networks: StableDiffusion, counts: Sequence[int]) -> JobFigures:
    """Run the job in this process.

    Args:
        build: Builds the job from its arguments.
        arguments: Arguments of `nti-batch invert`.
        networks: Networks of the model, which are loaded already.
        counts: Number of updates of each timestep.

    Raises:
        RuntimeError: If not every image is committed as done.
    """
    device = networks.device
    clocks = {name: DeviceClock(device) for name in DEVICE}
    host = {name: DeviceClock() for name in HOST}
    with _timed(DEVICE, clocks), _timed(HOST, host), fixed_updates(counts), _unfrozen(), StopSignals() as stop:
        job = build(arguments, stop)
        module = job.module
        assert isinstance(module, InversionModule)
        module.networks = networks
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with _moments(clocks.values()) as moments:
            start = time.perf_counter()
            is_done = predict(job)
            end = time.perf_counter()
    tally = job.writer.tally
    if not is_done or not tally.done or tally.failed:
        raise RuntimeError(f"{tally.done} images are done and {tally.failed} failed; the lines above name the reason")
    images = tally.done
    busy = {name: clock.seconds for name, clock in {"UNet": module.pool.clock, **clocks}.items()}
    work, seconds = module.pool.work, end - start - moments.warm_up_seconds
    assert moments.first_encoding is not None
    return JobFigures(
        images=images,
        images_per_hour=3600 * images / seconds,
        seconds=seconds,
        start_seconds=moments.first_encoding - start,
        end_seconds=end - moments.last_decoding,
        device_seconds={name: value / images for name, value in busy.items()},
        host_seconds={name: clock.seconds / images for name, clock in host.items()},
        forwards=work.forwards / images,
        backwards=work.backwards / images,
        warm_up_seconds=moments.warm_up_seconds,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


@contextmanager
def _unfrozen() -> Iterator[None]:
    """Undo the job's `gc.freeze`, after which the garbage collector would keep its graphs for ever."""
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _moments(clocks: Collection[DeviceClock]) -> Iterator[Moments]:
    """Note the moments of a job, and take what it does while it compiles and captures off the clocks of the device."""
    moments = Moments()
    encode, warm_up, end = InversionModule._encode, InversionModule._warm_up, InversionModule.on_predict_epoch_end

    def noted_encode(module: InversionModule) -> None:
        moments.first_encoding = moments.first_encoding or time.perf_counter()
        encode(module)

    def noted_warm_up(module: InversionModule, latents: Tensor, prompt: Tensor) -> None:
        before = [clock.seconds for clock in clocks]
        start = time.perf_counter()
        warm_up(module, latents, prompt)
        for clock, seconds in zip(clocks, before, strict=True):
            clock.finished_seconds -= clock.seconds - seconds
        moments.warm_up_seconds = time.perf_counter() - start

    def noted_end(module: InversionModule) -> None:
        end(module)
        synchronize(module.networks.device)
        moments.last_decoding = time.perf_counter()

    with (
        patch.object(InversionModule, "_encode", noted_encode),
        patch.object(InversionModule, "_warm_up", noted_warm_up),
        patch.object(InversionModule, "on_predict_epoch_end", noted_end),
    ):
        yield moments


@contextmanager
def _timed(functions: dict[str, list[tuple[Any, str]]], clocks: dict[str, DeviceClock]) -> Iterator[None]:
    """Count the time of functions."""
    with ExitStack() as patches:
        for name, places in functions.items():
            for owner, attribute in places:
                timed = _counted(getattr(owner, attribute), clocks[name])
                patches.enter_context(patch.object(owner, attribute, timed))
        yield


def _counted(function: Callable[..., Any], clock: DeviceClock) -> Callable[..., Any]:
    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        with clock.running():
            return function(*args, **kwargs)

    return counted
