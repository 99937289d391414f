"""Finds the batch size by measuring network calls on their device, and makes calls in batches."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from nti_batch.diffusion.guidance import Predictor

MAX_BATCH_SIZE = 128
MIN_SPEEDUP = 1.05
"""Least gain in images per second for which the batch size is doubled."""


OneImage = tuple[Tensor, Tensor, Tensor]
"""Latents, [channels, height, width], a timestep, a scalar tensor, and a text embedding, [tokens, dim]."""


def no_other_calls(images: int) -> None:
    """Make no other calls."""


def find_batch_size(
    predict: Predictor,
    latents: Tensor,
    timestep: Tensor,
    embedding: Tensor,
    beside: Callable[[int], object] = no_other_calls,
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
            faster = images / _seconds(predict, (latents, timestep, embedding), images, beside)
        except torch.OutOfMemoryError:
            break
        if faster < MIN_SPEEDUP * speed:
            break
        batch_size, speed = images, faster
    return batch_size


def _seconds(predict: Predictor, image: OneImage, images: int, beside: Callable[[int], object]) -> float:
    """Time of a call with gradient and one without; a first round warms up, and makes the other calls, too."""
    for others in (beside, no_other_calls):
        start = time.perf_counter()
        _, gradient = both_calls(predict, image, images, others)
        gradient.sum().item()  # wait for a GPU
        seconds = time.perf_counter() - start
    return seconds


def both_calls(
    predict: Predictor, image: OneImage, images: int, beside: Callable[[int], object] = no_other_calls
) -> tuple[Tensor, Tensor]:
    """Make a call of each kind, on their way together.

    Args:
        predict: The network.
        image: Inputs of one image.
        images: Number of copies of it in each call.
        beside: Makes other calls of this number of images, while the activations of the call with gradient are kept.

    Returns:
        Prediction of the first image and gradient of its embedding.
    """
    latents, timestep, embedding = image
    inputs = latents.repeat(images, 1, 1, 1), timestep.repeat(images)
    embeddings = embedding.repeat(images, 1, 1)
    with torch.enable_grad():
        differentiable = predict(*inputs, embeddings.requires_grad_())
        with torch.no_grad():
            prediction = predict(*inputs, embeddings.detach())
            beside(images)
        gradient = torch.autograd.grad(differentiable.square().sum(), embeddings)[0]
    return prediction[0], gradient[0]


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
