"""Finds the batch size by measuring network calls on their device, and makes calls in batches."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from nti_batch.diffusion.guidance import Predictor

MAX_BATCH_SIZE = 128
MIN_SPEEDUP = 1.05
"""Least gain in images per second for which the batch size is doubled."""


def find_batch_size(
    predict: Predictor,
    latents: Tensor,
    timestep: Tensor,
    embedding: Tensor,
    beside: Callable[[int], object] = lambda images: None,
) -> int:
    """Double the batch size while that processes images at least 5 % faster and the memory suffices.

    The memory must suffice for what the pool has on its way together: a call with gradient, which keeps its activations
    until the backward pass, and beside it a call without gradient or a call of the VAE.

    Args:
        predict: The frozen network.
        latents: Latents of one image, [channels, height, width]; their values do not matter.
        timestep: A timestep of the network, a scalar tensor.
        embedding: Text embedding of one image, [tokens, dim].
        beside: Makes the other calls of a batch size, those of the VAE; their time does not count.
    """
    batch_size, speed = 1, 0.0
    for images in [2**i for i in range(MAX_BATCH_SIZE.bit_length())]:
        try:
            faster = images / _seconds(predict, latents, timestep, embedding, images, beside)
        except torch.OutOfMemoryError:
            break
        if faster < MIN_SPEEDUP * speed:
            break
        batch_size, speed = images, faster
    return batch_size


@torch.enable_grad()
def _seconds(
    predict: Predictor,
    latents: Tensor,
    timestep: Tensor,
    embedding: Tensor,
    images: int,
    beside: Callable[[int], object],
) -> float:
    """Time of a call with gradient and one without; a first round warms up, and makes the other calls, too."""
    inputs = latents.repeat(images, 1, 1, 1), timestep.repeat(images)
    for is_timed in (False, True):
        start = time.perf_counter()
        embeddings = embedding.repeat(images, 1, 1).requires_grad_()
        prediction = predict(*inputs, embeddings)
        with torch.no_grad():
            predict(*inputs, embeddings)
            if not is_timed:
                beside(images)
        gradient = torch.autograd.grad(prediction.sum(), embeddings)[0]
        gradient.sum().item()  # wait for a GPU
        seconds = time.perf_counter() - start
    return seconds


def in_batches(call: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int) -> Tensor:
    """Call a network on rows, `batch_size` at a time, and with half as many where the memory does not suffice.

    Raises:
        torch.OutOfMemoryError: If a call for one row does not fit.
    """
    try:
        return torch.cat([call(rows) for rows in inputs.split(batch_size)])
    except torch.OutOfMemoryError:
        if batch_size == 1:
            raise
    return in_batches(call, inputs, batch_size // 2)
