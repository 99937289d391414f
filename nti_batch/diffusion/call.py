"""A network call for some of the images in flight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nti_batch.diffusion.host import HostCopy, to_device
from nti_batch.diffusion.null_text import InversionState


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A network call on its way. Tensors have a row for each image."""

    states: list[InversionState]
    needs_gradient: bool
    rows: Tensor
    """Row of each image in `PoolTensors`, [batch] int64."""

    t: Tensor
    next_t: Tensor
    """Levels before and after the step, [batch] int64."""

    embeddings: Tensor
    predictions: Tensor
    latents: Tensor
    """Latents after the step: up the pivot, or down with guidance."""

    losses: Tensor
    """Mean squared distance of `latents` to the pivot, [batch]; meaningless on the way up."""

    values: HostCopy | None
    """The losses on their way to the host; None if no decision depends on them."""

    def gradients(self, is_updated: Sequence[bool]) -> Tensor:
        """Gradients of the losses of images that are updated, by their embeddings; 0 for the others.

        Losses near 1e-5, each a mean over thousands of values, have gradients too small for half precision. A
        backward pass is linear in its input: each row enters with a largest value of 1, and is scaled back afterwards.
        """
        updated = to_device(is_updated, self.losses.device, self.losses.dtype)
        of_predictions = torch.autograd.grad(self.losses, self.predictions, updated)[0]
        scale = of_predictions.abs().amax(dim=(1, 2, 3)).clamp(min=torch.finfo(of_predictions.dtype).tiny)
        scaled = of_predictions / scale.view(-1, 1, 1, 1)
        of_embeddings = torch.autograd.grad(self.predictions, self.embeddings, scaled)[0]
        return of_embeddings * scale.view(-1, 1, 1)
