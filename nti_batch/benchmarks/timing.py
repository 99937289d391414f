"""Time, time in the UNet, and peak memory, on a GPU or without."""

import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from nti_batch.diffusion.clock import DeviceClock
from nti_batch.diffusion.guidance import Predictor

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class Cost:
    """Time that a block of code took."""

    seconds: float = 0.0
    unet_seconds: float = 0.0


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work, so that a clock measures it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class UNetClock(DeviceClock):
    """A `Predictor` that adds up the time spent in the network, in forward and backward passes."""

    def __init__(self, predict: Predictor, device: torch.device) -> None:
        """Start at zero."""
        super().__init__(device)
        self.predict = predict

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Predict, and time the backward pass too, if there is one."""
        if not (torch.is_grad_enabled() and embeddings.requires_grad):
            with self.running():
                return self.predict(latents, timesteps, embeddings)
        prediction: Tensor = _Timed.apply(self, latents, timesteps, embeddings)  # type: ignore[no-untyped-call]
        return prediction


class _Timed(torch.autograd.Function):
    """The network as one node of the graph, which holds the network's own graph: so its backward pass is one call."""

    @staticmethod
    def forward(ctx: Any, clock: UNetClock, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        ctx.clock, ctx.embeddings = clock, embeddings.detach().requires_grad_()
        with clock.running(), torch.enable_grad():
            prediction = clock.predict(latents, timesteps, ctx.embeddings)
        ctx.prediction = prediction
        return prediction.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor]:
        with ctx.clock.running():
            ctx.prediction.backward(gradient)
            del ctx.prediction  # a network without a clock also frees its graph here
        return None, None, None, ctx.embeddings.grad


@contextmanager
def measured(clock: UNetClock) -> Iterator[Cost]:
    """The cost of what runs in the `with` block, filled in at its end."""
    cost, before = Cost(), clock.seconds
    synchronize(clock.device)
    start = time.perf_counter()
    yield cost
    synchronize(clock.device)
    cost.seconds = time.perf_counter() - start
    cost.unet_seconds = clock.seconds - before


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process so far, in bytes: on the GPU, or without one in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class OwnProcess:
    """A separate process for one side of a comparison, which keeps what it has loaded, with its own peak memory."""

    def __init__(self) -> None:
        """Prepare the process, which starts with the first call."""
        self._executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __enter__(self) -> "OwnProcess":
        """Enter a `with` block, whose end ends the process."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self._executor.shutdown()

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of a module in the process; return or raise what it does."""
        return self._executor.submit(function, *args, **kwargs).result()
