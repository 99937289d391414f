"""DDIM: one deterministic step between two noise levels, inversion, and guided sampling.

Song et al., "Denoising Diffusion Implicit Models", 2021, https://arxiv.org/abs/2010.02502, equation 12 with
sigma = 0; the step up is the same formula with the levels exchanged.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nti_batch.diffusion.guidance import NoisePredictor, classifier_free_guidance
from nti_batch.diffusion.schedule import DDIMSchedule


def ddim_step(schedule: DDIMSchedule, latents: Tensor, noise: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Move each image from noise level a = `source` to b = `target`, up or down.

        sqrt(abar_b) (z - sqrt(1 - abar_a) e) / sqrt(abar_a) + sqrt(1 - abar_b) e

    Args:
        schedule: The noise levels.
        latents: z_a, [batch, channels, height, width].
        noise: e, in the same shape.
        source: a of each image, [batch] int64 in 0 ... T.
        target: b of each image, likewise.
    """
    abar_a, abar_b = schedule.alpha(source), schedule.alpha(target)
    predicted_origin = (latents - (1 - abar_a).sqrt() * noise) / abar_a.sqrt()
    return abar_b.sqrt() * predicted_origin + (1 - abar_b).sqrt() * noise


def predict_at(
    predict_noise: NoisePredictor, schedule: DDIMSchedule, latents: Tensor, t: int, embeddings: Tensor
) -> Tensor:
    """The network's noise for images that are all at t."""
    return predict_noise(latents, schedule.network_timesteps[_all_at(t, latents)], embeddings)


def guided_step(
    predict_noise: NoisePredictor,
    schedule: DDIMSchedule,
    latents: Tensor,
    t: int,
    noise_cond: Tensor,
    null_embedding: Tensor,
    guidance_scale: float,
) -> Tensor:
    """z_{t-1} of images that are all at t, guided away from their null embeddings.

    Args:
        predict_noise: The network.
        schedule: The noise levels.
        latents: z_t, [batch, channels, height, width].
        t: 1 ... T.
        noise_cond: eps(z_t, C), in the same shape.
        null_embedding: null_t, [batch, tokens, dim].
        guidance_scale: w; at 1 the null embeddings are not looked at.
    """
    noise = noise_cond
    if guidance_scale != 1:
        noise_uncond = predict_at(predict_noise, schedule, latents, t, null_embedding)
        noise = classifier_free_guidance(noise_uncond, noise_cond, guidance_scale)
    return ddim_step(schedule, latents, noise, _all_at(t, latents), _all_at(t - 1, latents))


def _all_at(t: int, latents: Tensor) -> Tensor:
    """The level of each image, [batch] int64."""
    return torch.full((len(latents),), t, device=latents.device)


@torch.no_grad()
def ddim_invert(
    predict_noise: NoisePredictor, schedule: DDIMSchedule, latents: Tensor, prompt_embeddings: Tensor
) -> Tensor:
    """Invert with guidance scale 1: the pivot trajectory z*_0 ... z*_T, [T + 1, batch, channels, height, width].

        z*_{t+1} = step(z*_t, eps(z*_t, C), t -> t + 1)

    As everyone does, the network is asked at the timestep of t + 1: the level that sampling will come from.
    """
    trajectory = [latents]
    for t in range(schedule.num_steps):
        noise = predict_at(predict_noise, schedule, trajectory[t], t + 1, prompt_embeddings)
        here, above = _all_at(t, latents), _all_at(t + 1, latents)
        trajectory.append(ddim_step(schedule, trajectory[t], noise, here, above))
    return torch.stack(trajectory)


@torch.no_grad()
def ddim_sample(
    predict_noise: NoisePredictor,
    schedule: DDIMSchedule,
    noise_latents: Tensor,
    prompt_embeddings: Tensor,
    null_embeddings: Sequence[Tensor],
    guidance_scale: float,
) -> Tensor:
    """Sample from z_T down to z_0 with classifier-free guidance.

    Args:
        predict_noise: The network.
        schedule: The noise levels.
        noise_latents: z_T, [batch, channels, height, width].
        prompt_embeddings: C, [batch, tokens, dim].
        null_embeddings: T unconditional embeddings, each [batch, tokens, dim]; the first belongs to t = T.
        guidance_scale: w; at 1 the unconditional embeddings are not looked at.
    """
    latents = noise_latents
    for t, null_embedding in zip(range(schedule.num_steps, 0, -1), null_embeddings, strict=True):
        noise_cond = predict_at(predict_noise, schedule, latents, t, prompt_embeddings)
        latents = guided_step(predict_noise, schedule, latents, t, noise_cond, null_embedding, guidance_scale)
    return latents
