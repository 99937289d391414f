"""How many images a network call should hold: measured on the device that will make the calls."""

import time

import torch
from torch import Tensor

from nti_batch.diffusion.guidance import Predictor

MAX_BATCH_SIZE = 128


MIN_SPEEDUP = 1.05


def find_batch_size(predict: Predictor, latents: Tensor, timestep: Tensor, embedding: Tensor) -> int:
    """Double the number of images in a call while that makes an image at least 5 % cheaper and memory suffices.

    Args:
        predict: The frozen network.
        latents: Of one image, [channels, height, width]; their values do not matter.
        timestep: The network's, a number.
        embedding: Of one image, [tokens, dim].
    """
    batch_size, speed = 1, 0.0
    for images in [2**i for i in range(MAX_BATCH_SIZE.bit_length())]:
        try:
            faster = images / _seconds(predict, latents, timestep, embedding, images)
        except torch.OutOfMemoryError:
            break
        if faster < MIN_SPEEDUP * speed:
            break
        batch_size, speed = images, faster
    return batch_size


@torch.enable_grad()
def _seconds(predict: Predictor, latents: Tensor, timestep: Tensor, embedding: Tensor, images: int) -> float:
    """Time of a call with gradient, the dearest kind; the first of two warms up."""
    for _ in range(2):
        start = time.perf_counter()
        embeddings = embedding.repeat(images, 1, 1).requires_grad_()
        noise = predict(latents.repeat(images, 1, 1, 1), timestep.repeat(images), embeddings)
        gradient = torch.autograd.grad(noise.sum(), embeddings)[0]
        gradient.sum().item()  # waits for a GPU
        seconds = time.perf_counter() - start
    return seconds
