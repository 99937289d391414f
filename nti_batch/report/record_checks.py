"""Checks the content of one record."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nti_batch.output.edits import decode_png
from nti_batch.output.serialization import StoredInversion


def check_inversion(stored: StoredInversion) -> Iterator[str]:
    """What is wrong with the tensors of an inversion."""
    steps = stored.settings.num_steps
    if stored.null_embeddings.ndim != 3 or len(stored.null_embeddings) != steps:
        yield f"null_embeddings have the shape {tuple(stored.null_embeddings.shape)}, not [{steps}, tokens, dim]"
    expected = (steps, *stored.noise_latents.shape) if stored.settings.inversion.keeps_pivot else None
    found = None if stored.pivot is None else tuple(stored.pivot.shape)
    if found != expected:
        yield f"the pivot has the shape {found}, not {expected}"
    yield from _check_tensors(stored)


def _check_tensors(stored: StoredInversion) -> Iterator[str]:
    tensors: dict[str, Tensor | None] = {
        "null_embeddings": stored.null_embeddings,
        "noise_latents": stored.noise_latents,
        "pivot": stored.pivot,
    }
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != torch.float32:
            yield f"{name} are {tensor.dtype}, not float32"
        if tensor is not None and not tensor.isfinite().all():
            yield f"{name} hold numbers that are not finite"


def check_png(payload: bytes, height: int, width: int) -> Iterator[str]:
    """What is wrong with an edited image."""
    try:
        found = tuple(decode_png(payload).shape[1:])
    except ValueError as error:
        yield str(error)
    else:
        if found != (height, width):
            yield f"is an image of the height and width {found}, not {height, width}"
