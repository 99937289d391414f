"""Time, time in the UNet, and peak memory, on a GPU or without."""

import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from nti_batch.diffusion.guidance import NoisePredictor

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class Cost:
    """Of one turn."""

    seconds: float = 0.0
    unet_seconds: float = 0.0


def synchronize(device: torch.device) -> None:
    """Wait for what was asked of a GPU, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class UNetClock:
    """A `NoisePredictor` that adds up the time spent in the network, forwards and backwards."""

    def __init__(self, predict_noise: NoisePredictor, device: torch.device) -> None:
        """Start at zero."""
        self.predict_noise, self.device = predict_noise, device
        self.seconds, self._started = 0.0, 0.0

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Predict, and listen for the gradient that passes."""
        self._start()
        noise = self.predict_noise(latents, timesteps, embeddings)
        self._stop()
        if noise.requires_grad and embeddings.requires_grad:
            noise.register_hook(lambda gradient: self._start())
            self._until_gradient_of(embeddings)
        return noise

    def _until_gradient_of(self, embeddings: Tensor) -> None:
        """Stop the clock once: the authors' loop gives the same tensor to many calls."""

        def stop(gradient: Tensor) -> None:
            self._stop()
            handle.remove()

        handle = embeddings.register_hook(stop)

    def _start(self) -> None:
        synchronize(self.device)
        self._started = time.perf_counter()

    def _stop(self) -> None:
        synchronize(self.device)
        self.seconds += time.perf_counter() - self._started


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
    """Most memory so far: of the GPU by this process, or of the process itself."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class OwnProcess:
    """A process for one side of a comparison, so that its memory is its own; what it loads stays loaded."""

    def __init__(self) -> None:
        """Start when first called."""
        self._executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __enter__(self) -> "OwnProcess":
        """Enter a `with` block, whose end ends the process."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self._executor.shutdown()

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function of a module there, and wait for what it returns or raises."""
        return self._executor.submit(function, *args, **kwargs).result()
