"""Classifier-free guidance, and what this package asks of a noise-prediction network.

Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598.
The guidance scale w is Stable Diffusion's: w = 1 is no guidance. (The paper's is w - 1.)
"""

from typing import Protocol

from torch import Tensor


class NoisePredictor(Protocol):
    """A frozen network eps(z_t, t, embeddings); anything with this signature will do."""

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Predict the noise in the latents.

        Args:
            latents: z_t, [batch, channels, height, width] float32.
            timesteps: The network's own timestep (0 to 999) of each image, [batch] int64.
            embeddings: Text embedding of each image, [batch, tokens, dim] float32.

        Returns:
            The noise e, float32, in the shape of `latents`.
        """
        ...


def classifier_free_guidance(noise_uncond: Tensor, noise_cond: Tensor, guidance_scale: float) -> Tensor:
    """Return e_u + w (e_c - e_u)."""
    return noise_uncond + guidance_scale * (noise_cond - noise_uncond)
