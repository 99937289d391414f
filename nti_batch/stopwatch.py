"""Time, time in the UNet, and peak memory of what runs in a `with` block, on a GPU or without."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nti_batch.stable_diffusion import StableDiffusion


@dataclass(slots=True)
class Cost:
    """Time and memory of one side, summed over its turns."""

    seconds: float = 0.0
    unet_seconds: float = 0.0
    peak_bytes: int = 0


def synchronize(device: torch.device) -> None:
    """Wait for what was asked of a GPU, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class UNetClock:
    """A `NoisePredictor` that adds up the time spent in the network, forwards and backwards."""

    def __init__(self, networks: StableDiffusion) -> None:
        """Start at zero."""
        self.networks, self.seconds, self._started = networks, 0.0, 0.0

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Predict, and listen for the gradient that passes."""
        self._start()
        noise = self.networks.predict_noise(latents, timesteps, embeddings)
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
        synchronize(self.networks.device)
        self._started = time.perf_counter()

    def _stop(self) -> None:
        synchronize(self.networks.device)
        self.seconds += time.perf_counter() - self._started


@contextmanager
def measured(cost: Cost, clock: UNetClock) -> Iterator[None]:
    """Add the time and the peak memory of a turn to what its side costs: of the GPU, or of the process."""
    device = clock.networks.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    stop, peak = threading.Event(), [resident_bytes()]
    watch = threading.Thread(target=_watch_memory, args=(stop, peak), daemon=True)
    watch.start()
    before = clock.seconds
    synchronize(device)
    start = time.perf_counter()
    yield
    synchronize(device)
    cost.seconds += time.perf_counter() - start
    cost.unet_seconds += clock.seconds - before
    stop.set()
    watch.join()
    seen = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak[0]
    cost.peak_bytes = max(cost.peak_bytes, seen)


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def _watch_memory(stop: threading.Event, peak: list[int]) -> None:
    while not stop.wait(0.02):
        peak[0] = max(peak[0], resident_bytes())
