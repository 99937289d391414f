"""DDIM: one deterministic step between two noise levels, inversion, and guided sampling.

Song et al., "Denoising Diffusion Implicit Models", 2021, https://arxiv.org/abs/2010.02502, equation 12 with
sigma = 0; the step up is the same formula with the levels exchanged.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nti_batch.diffusion.guidance import Predictor, classifier_free_guidance
from nti_batch.diffusion.schedule import DDIMSchedule


def ddim_step(
    schedule: DDIMSchedule,
    latents: Tensor,
    prediction: Tensor,
    source: Tensor,
    target: Tensor,
    variance: Tensor | float = 0.0,
) -> Tensor:
    """Move each image from noise level a = `source` to b = `target`, up or down.

        z_b = sqrt(abar_b) x_0 + sqrt(1 - abar_b - variance) e
        x_0 = (z_a - sqrt(1 - abar_a) e) / sqrt(abar_a)    for a network that predicts the noise e

    A network that predicts the velocity v gives x_0 and e without a division. Salimans and Ho, "Progressive
    Distillation for Fast Sampling of Diffusion Models", 2022, https://arxiv.org/abs/2202.00512, appendix D:

        x_0 = sqrt(abar_a) z_a - sqrt(1 - abar_a) v
        e   = sqrt(abar_a) v + sqrt(1 - abar_a) z_a

    So at zero terminal SNR, where e is z_a and tells nothing of x_0, no rounding error grows.

    Args:
        schedule: The noise levels, and what the network predicts.
        latents: z_a, [batch, channels, height, width].
        prediction: e or v of the noisier of the two levels, in the same shape.
        source: a of each image, [batch] int64 in 0 ... T.
        target: b of each image, likewise.
        variance: Share of the variance of z_b that a caller adds as other noise than e.
    """
    abar_a, abar_b = schedule.alpha(source), schedule.alpha(target)
    if schedule.prediction_type == "epsilon":
        noise = prediction
        origin = (latents - (1 - abar_a).sqrt() * noise) / abar_a.sqrt()
    else:
        velocity = _velocity_at(abar_a, torch.minimum(abar_a, abar_b), latents, prediction)
        noise = abar_a.sqrt() * velocity + (1 - abar_a).sqrt() * latents
        origin = abar_a.sqrt() * latents - (1 - abar_a).sqrt() * velocity
    return abar_b.sqrt() * origin + (1 - abar_b - variance).clamp(min=0).sqrt() * noise


def _velocity_at(abar_a: Tensor, abar_n: Tensor, latents: Tensor, velocity: Tensor) -> Tensor:
    """Velocity v_a at level a that has the same noise e as v_n, which was predicted at the noisier level n.

        v_a = (e - sqrt(1 - abar_a) z) / sqrt(abar_a)    with e = sqrt(abar_n) v_n + sqrt(1 - abar_n) z

    On the way down n = a: the factor of v_n is 1, and the factor of z is exactly 0. On the way up abar_a is larger.
    """
    ratio = (abar_n / abar_a).sqrt()
    return ratio * velocity + ((1 - abar_n).sqrt() - (1 - abar_a).sqrt()) / abar_a.sqrt() * latents


def predict_at(predict: Predictor, schedule: DDIMSchedule, latents: Tensor, t: int, embeddings: Tensor) -> Tensor:
    """The network's prediction for images that are all at t."""
    return predict(latents, schedule.network_timesteps[all_at(t, latents)], embeddings)


def guided_step(
    predict: Predictor,
    schedule: DDIMSchedule,
    latents: Tensor,
    t: int,
    cond: Tensor,
    null_embedding: Tensor,
    guidance_scale: float,
) -> Tensor:
    """z_{t-1} of images that are all at t, guided away from their null embeddings.

    Args:
        predict: The frozen network.
        schedule: The noise levels.
        latents: z_t, [batch, channels, height, width].
        t: 1 ... T.
        cond: The prediction for the prompt, in the same shape.
        null_embedding: null_t, [batch, tokens, dim].
        guidance_scale: w; at 1 the null embeddings are not used.
    """
    prediction = cond
    if guidance_scale != 1:
        uncond = predict_at(predict, schedule, latents, t, null_embedding)
        prediction = classifier_free_guidance(uncond, cond, guidance_scale)
    return ddim_step(schedule, latents, prediction, all_at(t, latents), all_at(t - 1, latents))


def all_at(t: int, latents: Tensor) -> Tensor:
    """The level of each image, [batch] int64."""
    return torch.full((len(latents),), t, device=latents.device)


@torch.no_grad()
def ddim_invert(predict: Predictor, schedule: DDIMSchedule, latents: Tensor, prompt_embeddings: Tensor) -> Tensor:
    """Invert with guidance scale 1: the pivot trajectory z*_0 ... z*_T, [T + 1, batch, channels, height, width].

        z*_{t+1} = step(z*_t, eps(z*_t, C), t -> t + 1)

    Like other implementations, it evaluates the network at the timestep of t + 1, from which sampling comes down.
    """
    trajectory = [latents]
    for t in range(schedule.num_steps):
        prediction = predict_at(predict, schedule, trajectory[t], t + 1, prompt_embeddings)
        here, above = all_at(t, latents), all_at(t + 1, latents)
        trajectory.append(ddim_step(schedule, trajectory[t], prediction, here, above))
    return torch.stack(trajectory)


@torch.no_grad()
def ddim_sample(
    predict: Predictor,
    schedule: DDIMSchedule,
    noise_latents: Tensor,
    prompt_embeddings: Tensor,
    null_embeddings: Sequence[Tensor],
    guidance_scale: float,
) -> Tensor:
    """Sample from z_T down to z_0 with classifier-free guidance.

    Args:
        predict: The frozen network.
        schedule: The noise levels.
        noise_latents: z_T, [batch, channels, height, width].
        prompt_embeddings: C, [batch, tokens, dim].
        null_embeddings: T unconditional embeddings, each [batch, tokens, dim]; the first belongs to t = T.
        guidance_scale: w; at 1 the unconditional embeddings are not used.
    """
    latents = noise_latents
    for t, null_embedding in zip(range(schedule.num_steps, 0, -1), null_embeddings, strict=True):
        cond = predict_at(predict, schedule, latents, t, prompt_embeddings)
        latents = guided_step(predict, schedule, latents, t, cond, null_embedding, guidance_scale)
    return latents
