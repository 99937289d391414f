"""Makes the UNet's calls faster, or smaller: `torch.compile`, CUDA graphs, and activation checkpointing.

The first two need calls of one shape.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nti_batch.diffusion.guidance import Predictor
from nti_batch.models.stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceleration:
    """Ways to make the UNet's calls faster or smaller; without them PyTorch runs each operation as it comes."""

    compile_backend: str | None = None
    """Backend of `torch.compile`, such as 'inductor'; None does not compile."""

    cuda_graphs: bool = False
    """Whether the two kinds of call, with gradient and without, are captured in CUDA graphs."""

    checkpointing: bool = False
    """Whether a backward pass computes activations again instead of keeping them all (activation checkpointing)."""

    @property
    def is_on(self) -> bool:
        """Whether anything is compiled or captured, so that the first calls take long."""
        return self.compile_backend is not None or self.cuda_graphs

    def check(self) -> None:
        """Raise a ValueError for a backend that PyTorch does not have."""
        if self.compile_backend is not None:
            backends = torch.compiler.list_backends(exclude_tags=())
            if self.compile_backend not in backends:
                allowed = ", ".join(sorted(backends))
                raise ValueError(f"model.compile is {self.compile_backend!r}, allowed: {allowed}, or leave it out")

    def check_device(self, device: torch.device) -> None:
        """Raise a ValueError for CUDA graphs without a GPU."""
        if self.cuda_graphs and device.type != "cuda":
            raise ValueError(f"model.cuda_graphs is true, and the device is {device}: leave it out, or give a CUDA GPU")

    def predictor(
        self, networks: StableDiffusion, batch_size: Callable[[], int], optimize_pooled: bool = False
    ) -> Predictor:
        """Make the `Predictor` of a job.

        Args:
            networks: The networks; `networks.predict` itself still takes batches of any size.
            batch_size: Present batch size. It may shrink, and then the next call is compiled or captured again.
            optimize_pooled: As for `StableDiffusion.predict`.
        """
        predict: Callable[..., Tensor] = networks.predict
        if self.checkpointing:
            checkpoint_activations(networks.unet)
        if self.compile_backend is not None:
            predict = _compiled(networks, self.compile_backend)
        own_predict: Predictor = partial(predict, optimize_pooled=optimize_pooled)
        if self.cuda_graphs:
            own_predict = CapturedPredictor(own_predict)
        return PaddedPredictor(own_predict, batch_size) if self.is_on else own_predict


def checkpoint_activations(unet: "UNet2DConditionModel") -> None:
    """Let each residual block and each transformer block keep its input alone, whenever gradients are enabled.

    No dropout is active, so no state of random numbers has to be kept; a CUDA graph could not capture that.
    """
    unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))


def _compiled(networks: StableDiffusion, backend: str) -> Callable[..., Tensor]:
    """Compile the whole UNet into one graph for each kind of call, with channels last in memory.

    Inductor keeps that layout in graphs with a backward pass, too, only if it is forced.
    """
    import torch._inductor.config

    torch._inductor.config.force_layout_optimization = True
    networks.unet.to(memory_format=torch.channels_last)
    compiled: Callable[..., Tensor] = torch.compile(networks.predict, backend=backend, fullgraph=True, dynamic=False)
    return compiled


class PaddedPredictor:
    """A `Predictor` whose network sees one batch size alone: smaller batches are padded with copies of their last row.

    The gradients of the copies are dropped. Each row of the result depends on its own row of the input alone.
    """

    def __init__(self, predict: Predictor, batch_size: Callable[[], int]) -> None:
        """Take the network and its batch size."""
        self.predict, self.batch_size = predict, batch_size

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Predict for at most `batch_size` rows."""
        rows, missing = len(latents), self.batch_size() - len(latents)
        if missing > 0:
            latents, timesteps, embeddings = (_padded(tensor, missing) for tensor in (latents, timesteps, embeddings))
        return self.predict(latents, timesteps, embeddings)[:rows]


def _padded(tensor: Tensor, rows: int) -> Tensor:
    return torch.cat([tensor, tensor[-1:].detach().expand(rows, *tensor.shape[1:])])


class CapturedPredictor:
    """A `Predictor` that captures each kind of call in CUDA graphs at its first use, and replays them.

    A call of another shape drops the graphs. The graph of the backward pass is separate, so that it can be left out. It
    reads what the last replay of its forward pass has left, so it must come before the next call of the same kind.
    """

    def __init__(self, predict: Predictor) -> None:
        """Capture nothing yet."""
        self.predict = predict
        self._captured: dict[tuple[torch.Size, bool], Callable[..., Tensor]] = {}
        self._calls = 0

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Predict by a replay."""
        needs_gradient = torch.is_grad_enabled() and embeddings.requires_grad
        kind = latents.shape, needs_gradient
        if kind not in self._captured:
            # a smaller batch size must not pay for the memory of the larger one's graphs
            self._captured = {other: call for other, call in self._captured.items() if other[0] == latents.shape}
            self._captured[kind] = self._capture(latents, timesteps, embeddings.detach(), needs_gradient)
        prediction = self._captured[kind](latents, timesteps, embeddings)
        if needs_gradient:
            self._calls += 1
            prediction.register_hook(partial(self._check_order, self._calls))
        # the next replay overwrites the graph's own output
        return prediction.clone()

    def _capture(
        self, latents: Tensor, timesteps: Tensor, embeddings: Tensor, needs_gradient: bool
    ) -> Callable[..., Tensor]:
        samples = latents.clone(), timesteps.clone(), embeddings.clone().requires_grad_(needs_gradient)
        try:
            with torch.set_grad_enabled(needs_gradient), warnings.catch_warnings():
                # torch 2.11 keeps the graph of its warm-up, on another stream, until it captures, and warns of itself
                warnings.filterwarnings("ignore", "The AccumulateGrad node's stream", UserWarning)
                captured: Any = torch.cuda.make_graphed_callables(lambda *inputs: self.predict(*inputs), samples)
        except RuntimeError as error:
            # the end of a capture that did not fit the memory may fail, too, and hide the reason
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from error
            raise
        return captured  # type: ignore[no-any-return]

    def _check_order(self, call: int, gradient: Tensor) -> None:
        if call != self._calls:
            raise RuntimeError("a CUDA graph holds one call: its backward pass must come before the next call")
