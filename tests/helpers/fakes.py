"""Networks of a few lines that fit `Predictor`, and a schedule like Stable Diffusion's."""

import torch
from torch import Tensor

from nti_batch.diffusion.schedule import DDIMSchedule


def stable_diffusion_schedule(num_steps: int) -> DDIMSchedule:
    """Stable Diffusion's 1000 noise levels, `num_steps` of them, written out from their definition."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    timesteps = [i * (1000 // num_steps) + 1 for i in range(num_steps)][::-1]
    return DDIMSchedule.from_training(alphas, timesteps, alphas[0].item())


def rowwise(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
    """Nonlinear, one embedding value for each latent value, and each row is computed by itself.

    So a row has the same bits in any batch, and every noise within reach of tanh has an embedding.
    """
    return torch.tanh(0.3 * latents + embeddings.view_as(latents)) + 0.001 * timesteps.view(-1, 1, 1, 1)
