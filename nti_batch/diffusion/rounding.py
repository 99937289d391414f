"""Rounds results to the form in which they are stored, before anything is computed with them.

So the network gets the values that a reader of the file gets. Every later timestep corrects the rounding, and a replay
from the file retraces the job's own path.

    float32    unchanged
    float16    each value by itself
    compact    start: float16;   null_t = null_{t+1} + scale_t * level_t,   level_t whole numbers in -15 ... 15

The pivot, where the method keeps it, is float16 in both.
"""

from typing import Literal

import torch
from torch import Tensor

Storage = Literal["float32", "float16", "compact"]
LEVELS = 15
"""Fewer levels take fewer bytes, but Adam then needs more updates, since its changes are dense."""


def round_values(storage: Storage, values: Tensor) -> Tensor:
    """The stored form of a start embedding or of a point of the pivot, float32."""
    return values if storage == "float32" else values.half().to(values.dtype)


def round_embeddings(storage: Storage, embeddings: Tensor, previous: Tensor) -> Tensor:
    """The stored form of null_t, given null_{t+1} in its stored form; both [batch, tokens, dim] float32."""
    match storage:
        case "float32" | "float16":
            return round_values(storage, embeddings)
        case "compact":
            scale, levels = split_change(embeddings, previous)
            return previous + scale * levels


def split_change(embeddings: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
    """scale_t, [batch, 1, 1], and level_t of a change, [batch, tokens, dim], both float32.

    A scale is a bfloat16 number, so that scale times level has no rounding error, on any device. It is also large
    beside the rounding error of the sum. So splitting rounded embeddings gives the same scale and levels again.
    """
    change = embeddings - previous
    least = previous.abs().amax(dim=(1, 2), keepdim=True) * 2.0**-14
    scale = torch.maximum(change.abs().amax(dim=(1, 2), keepdim=True) / LEVELS, least).bfloat16().to(change.dtype)
    levels = (change / scale.clamp(min=torch.finfo(torch.bfloat16).tiny)).round()
    return scale, levels.clamp(-LEVELS, LEVELS)
