"""The rules that update a null embedding at one timestep; each row of a batch is an image of its own.

Notation: g is the gradient of an image's loss by its embedding, k the number of updates at this timestep.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nti_batch.diffusion.host import to_device

DECAY = 0.9
DAMPING = 0.3
LIMIT = 1.0
"""Largest change of one value of an embedding in one Polyak step; CLIP's values are around 1."""


def adam_step(
    embeddings: Tensor,
    gradients: Tensor,
    means: Tensor,
    squares: Tensor,
    steps: Sequence[int],
    learning_rates: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Update each image's embedding by Adam with its own moments, step count and rate.

        m <- 0.9 m + 0.1 g;   v <- 0.999 v + 0.001 g^2
        null <- null - lr * (m / (1 - 0.9^k)) / (sqrt(v / (1 - 0.999^k)) + 1e-8)

    Kingma and Ba, "Adam", 2015, https://arxiv.org/abs/1412.6980, Algorithm 1; `torch.optim.Adam` has one step
    count for all rows, whereas here each image has its own.

    Args:
        embeddings: null_t, [batch, tokens, dim].
        gradients: g, in the same shape.
        means: m, likewise; that of an image at its first step counts as 0.
        squares: v, likewise.
        steps: k of each image, from 1 on.
        learning_rates: One for each image.

    Returns:
        The updated embeddings, m and v.
    """
    rates = [
        (k == 1, 1 - 0.9**k, 1 - 0.999**k, learning_rate)
        for k, learning_rate in zip(steps, learning_rates, strict=True)
    ]
    columns = to_device(rates, embeddings.device, embeddings.dtype)
    is_first, unbiased_mean, unbiased_square, learning_rate = columns.view(-1, 4, 1, 1).unbind(1)
    is_first, zero = is_first.bool(), means.new_zeros(())
    means = torch.where(is_first, zero, means).lerp(gradients, 0.1)
    squares = torch.where(is_first, zero, squares).lerp(gradients.square(), 0.001)
    step = learning_rate * (means / unbiased_mean) / ((squares / unbiased_square).sqrt() + 1e-8)
    return embeddings - step, means, squares


def polyak_step(
    gradients: Tensor, losses: Tensor, squares: Tensor, is_first: Tensor, limit: float = LIMIT
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
        squares: v, [batch, tokens, dim]; that of an image at its first step does not count.
        is_first: Whether this is the first step of an image, bool [batch].
        limit: Largest change of one value.
    """
    new = gradients.square()
    square = torch.where(is_first.view(-1, 1, 1), new, torch.lerp(new, squares, DECAY))
    root = square.sqrt()
    direction = gradients / (root + DAMPING * square.mean(dim=(1, 2), keepdim=True).sqrt())
    slope = (gradients * direction).sum(dim=(1, 2), keepdim=True)
    step = -losses.view(-1, 1, 1) / slope * direction
    return step * (limit / step.abs().amax(dim=(1, 2), keepdim=True)).clamp(max=1), square
