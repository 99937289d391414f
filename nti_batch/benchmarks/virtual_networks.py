"""Networks whose calls wait for as long as Stable Diffusion 1.5's take on a GPU.

Milliseconds an image at some batch sizes, on an NVIDIA H200 with the UNet in bfloat16 (docs/gpu.md). Between two of
them the time of a call is interpolated.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nti_batch.diffusion.call import Call
from nti_batch.diffusion.host import HostCopy
from nti_batch.diffusion.null_text import InversionState
from nti_batch.diffusion.pool import InversionPool, K
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.models.stable_diffusion import StableDiffusion

CALLS: Mapping[str, Mapping[int, float]] = {
    "UNet forward": {1: 25.6, 4: 6.8, 16: 3.08, 64: 2.79},
    "UNet backward": {1: 39.5, 4: 13.3, 16: 3.95, 64: 3.70},
    "VAE encoder": {1: 14.9, 8: 8.9},
    "VAE decoder": {1: 27.0, 8: 19.1},
    "text encoder": {1: 4.0, 8: 0.5},
}
"""Milliseconds an image by batch size. A call of the text encoder takes as long for eight prompts as for one."""

LATENTS = (4, 64, 64)
TOKENS, DIM = 77, 768
POOL_DIM = 8
"""Values a token in the pool, in place of `DIM`."""

UPDATES = {"empty": 250, "prompt": 9}
"""Updates of an image over all timesteps, by the initial null embedding: those of the default and of fast.yaml on drawn
scenes, by the first edition of the embedded model."""


class VirtualDevice:
    """A queue of calls, like a GPU's: a call returns at once, and whoever reads a result waits for the device."""

    def __init__(self) -> None:
        """Start idle."""
        self.seconds = dict.fromkeys(CALLS, 0.0)
        """Seconds of each kind of call."""

        self.busy_until = 0.0

    def call(self, kind: str, images: int) -> None:
        """Put a call with so many images into the queue."""
        sizes = CALLS[kind]
        seconds = float(np.interp(images, list(sizes), [size * ms for size, ms in sizes.items()])) / 1000
        if images > max(sizes):
            seconds *= images / max(sizes)
        self.seconds[kind] += seconds
        self.busy_until = max(self.busy_until, time.perf_counter()) + seconds


class VirtualCopy(HostCopy):
    """Values that arrive when the device has computed them."""

    def __init__(self, values: Tensor, device: VirtualDevice) -> None:
        """Take the moment at which the device will have done what is in its queue."""
        super().__init__(values)
        self.moment = device.busy_until

    @property
    def has_arrived(self) -> bool:
        """Whether the moment has come."""
        return time.perf_counter() >= self.moment

    def tolist(self) -> list[Any]:
        """Wait for the moment."""
        time.sleep(max(0.0, self.moment - time.perf_counter()))
        return super().tolist()


class _VirtualUNet(torch.autograd.Function):
    """A UNet with a gradient to the embeddings; both are meaningless."""

    @staticmethod
    def forward(ctx: Any, device: VirtualDevice, latents: Tensor, embeddings: Tensor) -> Tensor:
        ctx.device, ctx.shape = device, embeddings.shape
        device.call("UNet forward", len(latents))
        return 0.1 * latents

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        ctx.device.call("UNet backward", len(gradient))
        return None, None, torch.ones(ctx.shape)


class VirtualNetworks(StableDiffusion):
    """Stable Diffusion 1.5 on a virtual device."""

    def __init__(self, device: VirtualDevice) -> None:
        """Load nothing."""
        nn.Module.__init__(self)
        self.virtual = device
        self.register_buffer("alphas_cumprod", torch.linspace(0.9991, 0.0047, 1000))

    def schedule(self, num_steps: int) -> DDIMSchedule:
        """Evenly spaced levels."""
        timesteps = [i * (1000 // num_steps) + 1 for i in reversed(range(num_steps))]
        return DDIMSchedule.from_training(self.alphas_cumprod, timesteps, self.alphas_cumprod[0].item())

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """Embeddings with `POOL_DIM` values a token."""
        self.virtual.call("text encoder", len(prompts))
        return torch.zeros(len(prompts), TOKENS, POOL_DIM)

    def truncates(self, prompt: str) -> bool:
        """No prompt is too long."""
        return False

    @property
    def pooled_dim(self) -> int:
        """There is no pooled embedding."""
        return 0

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents."""
        self.virtual.call("VAE encoder", len(pixels))
        return torch.ones(len(pixels), *LATENTS)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Grey images."""
        self.virtual.call("VAE decoder", len(latents))
        return torch.full((len(latents), 3, 512, 512), 0.5)

    def predict(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor, optimize_pooled: bool = False) -> Tensor:
        """Evaluate the UNet."""
        prediction: Tensor = _VirtualUNet.apply(self.virtual, latents, embeddings)  # type: ignore[no-untyped-call]
        return prediction


class VirtualPool(InversionPool[K]):
    """A pool on the virtual device, whose images take a fixed number of updates at each timestep."""

    def __init__(self, device: VirtualDevice, *arguments: Any) -> None:
        """Take the device, and what `InversionPool` takes."""
        super().__init__(*arguments)
        self.virtual, self.most_calls = device, 2

    def to_host(self, values: Tensor) -> HostCopy:
        """Start a copy from the device to the host."""
        return VirtualCopy(values, self.virtual)

    def read_losses(self, call: Call) -> list[float]:
        """A loss above the threshold while an image has updates left, then 0."""
        super().read_losses(call)
        return [float(s.current.updates < self._updates_at(s)) for s in call.states]

    def _updates_at(self, state: InversionState) -> int:
        """Updates of an image at its timestep: those of all timesteps, spread evenly, times 0.5 to 1.5."""
        total, steps = UPDATES[self.settings.null_init] * (2 + state.row % 5) // 4, self.schedule.num_steps
        return state.t * total // steps - (state.t - 1) * total // steps
