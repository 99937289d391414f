"""Times a UNet's two kinds of call, and compares their rate with that of a matrix product on the same device."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nti_batch.benchmarks.timing import synchronize
from nti_batch.diffusion.guidance import Predictor
from nti_batch.models.stable_diffusion import StableDiffusion

Kind = Literal["forward", "forward and backward"]
KINDS: tuple[Kind, ...] = ("forward", "forward and backward")

MATRIX_SIDES = {"cuda": 8192}
"""Side of the matrices, by the type of the device; elsewhere an eighth of it is enough."""

TIMED_SECONDS = 0.4
MIN_CALLS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Mean time of calls in a row."""

    seconds: float
    peak_bytes: int | None
    """Peak memory of a GPU; None without one."""


def timed(call: Callable[[], object], device: torch.device, seconds: float = TIMED_SECONDS) -> Timing:
    """Warm up by two calls, then time calls in a row for about `seconds`."""
    for _ in range(2):
        call()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    count = max(MIN_CALLS, round(seconds / (time.perf_counter() - start)))
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    mean = (time.perf_counter() - start) / count
    return Timing(seconds=mean, peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


def matrix_rate(device: torch.device) -> float:
    """Rate of the product of two square matrices in bfloat16, in TFLOP/s."""
    side = MATRIX_SIDES.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    result = torch.empty_like(a)
    return 2 * side**3 / timed(lambda: torch.matmul(a, b, out=result), device).seconds / 1e12


@dataclass(frozen=True, slots=True)
class Calls:
    """The two kinds of call of a job's UNet."""

    networks: StableDiffusion

    def make(self, predict: Predictor, kind: Kind, batch_size: int) -> Callable[[], Tensor]:
        """Prepare a call.

        Args:
            predict: `networks.predict`, or a faster form of it.
            kind: A forward pass, or one with a backward pass to the embeddings.
            batch_size: Number of images.
        """
        networks, device = self.networks, self.networks.device
        side, channels = networks.unet.config.sample_size, networks.unet.config.in_channels
        latents = torch.randn(batch_size, channels, side, side, device=device)
        timesteps = torch.arange(batch_size, device=device) * 10 + 1
        embeddings = networks.embed_prompts([""]).repeat(batch_size, 1, 1)
        if kind == "forward":
            return partial(_forward, predict, latents, timesteps, embeddings)
        return partial(_both, predict, latents, timesteps, embeddings.requires_grad_(), torch.randn_like(latents))

    def tflop(self, kind: Kind) -> float:
        """Work of a call for one image, in TFLOP."""
        from torch.utils.flop_counter import FlopCounterMode

        call = self.make(self.networks.predict, kind, 1)
        with FlopCounterMode(display=False) as counter:
            call()
        return float(counter.get_total_flops()) / 1e12


@torch.no_grad()
def _forward(predict: Predictor, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
    return predict(latents, timesteps, embeddings)


@torch.enable_grad()
def _both(predict: Predictor, latents: Tensor, timesteps: Tensor, embeddings: Tensor, gradient: Tensor) -> Tensor:
    return torch.autograd.grad(predict(latents, timesteps, embeddings), embeddings, gradient)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Kernels of a call."""

    busy_share: float
    """Share of the call's time in which a kernel runs."""

    names: dict[str, list[str]]
    """The longest kernels of each sort of operation."""


_SORTS = {
    "attention": ("flash", "fmha", "sdpa", "attention", "mha"),
    "convolution": ("conv", "fprop", "dgrad", "xmma", "implicit"),
    "normalisation": ("norm", "rowwisemoments", "welford", "triton_red", "triton_per"),
}
"""Parts of kernels' names; the first sort that fits counts."""


def kernels(call: Callable[[], object], device: torch.device, longest: int = 3) -> Kernels:
    """Profile a call. A profiler slows later launches of its process, so this comes last.

    Args:
        call: The call.
        device: Its device; without a GPU the operations of the processor count.
        longest: Number of names of each sort.
    """
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    call()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        call()
        synchronize(device)
        wall = time.perf_counter() - start
    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        seconds[event.key] = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
    names: dict[str, list[str]] = {sort: [] for sort in _SORTS}
    for name in sorted(seconds, key=lambda key: -seconds[key]):
        sort = next((s for s, parts in _SORTS.items() if any(part in name.lower() for part in parts)), None)
        if sort and seconds[name] > 0 and len(names[sort]) < longest:
            names[sort].append(name[:100])
    return Kernels(busy_share=min(1.0, sum(seconds.values()) / wall), names=names)
