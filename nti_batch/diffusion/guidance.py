"""Classifier-free guidance, and the network that this package expects.

Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598.
The guidance scale w is that of Stable Diffusion: w = 1 is no guidance. (The paper's scale is w - 1.)
"""

from typing import Protocol

from torch import Tensor


class Predictor(Protocol):
    """A frozen network; any callable with this signature fits."""

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Predict the noise e, or the velocity v, whichever the schedule's `prediction_type` names.

        Args:
            latents: z_t, [batch, channels, height, width] float32.
            timesteps: The network's own timestep (0 to 999) of each image, [batch] int64.
            embeddings: Text embedding of each image, [batch, tokens, dim] float32.

        Returns:
            The prediction, float32, in the shape of `latents`.
        """
        ...


def classifier_free_guidance(uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
    """Return u + w (c - u).

    The same guidance results for e and for v, since each is an affine function of the other at a given z_t.
    """
    return uncond + guidance_scale * (cond - uncond)
