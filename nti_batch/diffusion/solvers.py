"""The rules that update a null embedding at one timestep; each row of a batch is an image of its own.

Notation: g is the gradient of an image's loss by its embedding, k the number of updates at this timestep.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DECAY = 0.9
DAMPING = 0.3
LIMIT = 1.0
"""Largest change of one value of an embedding in one Polyak step; CLIP's values are around 1."""


@dataclass(slots=True, eq=False)
class Moments:
    """Running means of one image's gradient and of its square."""

    mean: Tensor
    square: Tensor
    steps: int = 0

    @classmethod
    def zeros_like(cls, gradient: Tensor) -> "Moments":
        """Moments before the first step."""
        return cls(torch.zeros_like(gradient), torch.zeros_like(gradient))


def adam_step(embeddings: Tensor, gradients: Tensor, moments: list[Moments], learning_rates: list[float]) -> Tensor:
    """Update each image's embedding by Adam with its own moments, step count and rate.

        m <- 0.9 m + 0.1 g;   v <- 0.999 v + 0.001 g^2
        null <- null - lr * (m / (1 - 0.9^k)) / (sqrt(v / (1 - 0.999^k)) + 1e-8)

    Kingma and Ba, "Adam", 2015, https://arxiv.org/abs/1412.6980, Algorithm 1; `torch.optim.Adam` has one step
    count for all rows, whereas here each image has its own.

    Args:
        embeddings: null_t, [batch, tokens, dim].
        gradients: g, in the same shape.
        moments: One for each image; updated in place.
        learning_rates: One for each image.
    """
    for gradient, m in zip(gradients, moments, strict=True):
        m.steps += 1
        m.mean = torch.lerp(m.mean, gradient, 0.1)
        m.square = torch.lerp(m.square, gradient.square(), 0.001)

    rates = [(1 - 0.9**m.steps, 1 - 0.999**m.steps, lr) for m, lr in zip(moments, learning_rates, strict=True)]
    columns = torch.tensor(rates, dtype=embeddings.dtype, device=embeddings.device)
    unbiased_mean, unbiased_square, learning_rate = columns.view(-1, 3, 1, 1).unbind(1)
    mean = torch.stack([m.mean for m in moments]) / unbiased_mean
    square = torch.stack([m.square for m in moments]) / unbiased_square
    return embeddings - learning_rate * mean / (square.sqrt() + 1e-8)


def polyak_step(
    gradients: Tensor, losses: Tensor, squares: list[Tensor | None], limit: float = LIMIT
) -> tuple[Tensor, Tensor]:
    """Return the preconditioned Polyak step of each image, to be added to its embedding, and its new v.

        v <- 0.9 v + 0.1 g^2
        d = g / (sqrt(v) + 0.3 rms(sqrt(v)))
        step = - loss / <g, d> d,   cut so that no value changes by more than `limit`

    The least loss is known to be zero, so the length needs no learning rate: the step leads to the point where the loss
    would be zero if it were linear. Polyak, "Introduction to Optimization", 1987, section 5.3. v is kept from timestep
    to timestep.

    Args:
        gradients: g, [batch, tokens, dim].
        losses: [batch].
        squares: v of each image, [tokens, dim]; None before its first step.
        limit: Largest change of one value.
    """
    pairs = zip(gradients.square(), squares, strict=True)
    square = torch.stack([new if old is None else torch.lerp(new, old, DECAY) for new, old in pairs])
    root = square.sqrt()
    direction = gradients / (root + DAMPING * square.mean(dim=(1, 2), keepdim=True).sqrt())
    slope = (gradients * direction).sum(dim=(1, 2), keepdim=True)
    step = -losses.view(-1, 1, 1) / slope * direction
    return step * (limit / step.abs().amax(dim=(1, 2), keepdim=True)).clamp(max=1), square
