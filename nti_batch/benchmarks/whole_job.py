"""Runs the job itself, from shard to committed part, and measures where its time goes."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch

from nti_batch.benchmarks.timing import UNetClock, synchronize
from nti_batch.benchmarks.update_counts import fixed_updates
from nti_batch.diffusion.clock import DeviceClock
from nti_batch.diffusion.guidance import Predictor
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

    device_idle: float
    """Share of the time in which the device has nothing to do."""

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
    timing = _timed(DEVICE, clocks), _timed(HOST, host)
    with timing[0], timing[1], fixed_updates(counts), _unet_clock() as unet, _unfrozen(), StopSignals() as stop:
        job = build(arguments, stop)
        module = job.module
        assert isinstance(module, InversionModule)
        module.networks = networks
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        is_done = predict(job)
        synchronize(device)
        warm_up = module.warm_up_seconds or 0.0
        seconds = time.perf_counter() - start - warm_up
    tally = job.writer.tally
    if not is_done or not tally.done or tally.failed:
        raise RuntimeError(f"{tally.done} images are done and {tally.failed} failed; the lines above name the reason")
    images = tally.done
    busy = {"UNet": unet[0].seconds - warm_up, **{name: clock.seconds for name, clock in clocks.items()}}
    work = module.pool.work
    return JobFigures(
        images=images,
        images_per_hour=3600 * images / seconds,
        seconds=seconds,
        device_idle=1 - sum(busy.values()) / seconds,
        device_seconds={name: value / images for name, value in busy.items()},
        host_seconds={name: clock.seconds / images for name, clock in host.items()},
        forwards=work.forwards / images,
        backwards=work.backwards / images,
        warm_up_seconds=warm_up,
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
def _unet_clock() -> Iterator[list[UNetClock]]:
    """Give the clock of the pool's network, once there is a pool."""
    clocks: list[UNetClock] = []
    original = InversionModule.predictor

    def predictor(module: InversionModule) -> Predictor:
        clocks.append(UNetClock(original(module), module.networks.device))
        return clocks[-1]

    with patch.object(InversionModule, "predictor", predictor):
        yield clocks


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
