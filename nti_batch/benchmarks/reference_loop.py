"""Null-text inversion as in the authors' notebook, one image at a time: the reference for the job.

It reimplements google/prompt-to-prompt, null_text_w_ptp.ipynb. Weights are not frozen, an update comes before the test
of its loss, and the step down evaluates both embeddings again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.benchmarks.loop_result import Inverted
from nti_batch.diffusion.ddim import ddim_invert, ddim_step
from nti_batch.diffusion.guidance import Predictor, classifier_free_guidance
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import pack_tensors
from nti_batch.records import CaptionedImage


def reference_loop(
    networks: StableDiffusion,
    predict: Predictor,
    image: CaptionedImage,
    schedule: DDIMSchedule,
    settings: InversionSettings,
) -> Inverted:
    """Invert one image as the authors' notebook does.

    Its weights are not frozen, so every backward pass computes the gradients of the whole UNet, which are not used.
    """
    networks.unet.requires_grad_(True)
    latents = networks.encode_images(image.pixels[None])
    prompt, empty = networks.embed_prompts([image.prompt]), networks.embed_prompts([""])
    trajectory = ddim_invert(predict, schedule, latents, prompt)
    z, null, found, forwards, backwards = trajectory[-1], empty, [], schedule.num_steps, 0
    for level in range(schedule.num_steps, 0, -1):
        null, updates = _optimized(predict, schedule, settings, z, level, prompt, null, trajectory[level - 1])
        found.append(null[0])
        t = torch.tensor([level], device=z.device)
        with torch.no_grad():
            both = predict(z.repeat(2, 1, 1, 1), schedule.network_timesteps[t].repeat(2), torch.cat([null, prompt]))
            z = ddim_step(schedule, z, classifier_free_guidance(both[:1], both[1:], settings.guidance_scale), t, t - 1)
        forwards, backwards = forwards + 1 + updates + 2, backwards + updates
    networks.unet.requires_grad_(False)
    networks.unet.zero_grad(set_to_none=True)
    noise, embeddings = trajectory[-1][0], torch.stack(found)
    stored = pack_tensors("float32", noise.cpu(), empty[0].cpu(), embeddings.cpu(), None)
    return Inverted(noise, z[0], empty[0], embeddings, None, forwards, backwards, len(stored))


def _optimized(
    predict: Predictor,
    schedule: DDIMSchedule,
    settings: InversionSettings,
    z: Tensor,
    level: int,
    prompt: Tensor,
    null: Tensor,
    target: Tensor,
) -> tuple[Tensor, int]:
    """null_t, [1, tokens, dim], and the number of updates that led to it."""
    t = torch.tensor([level], device=z.device)
    timestep = schedule.network_timesteps[t]
    null = null.clone().requires_grad_()
    optimizer = torch.optim.Adam([null], lr=settings.learning_rate_at(level, schedule.num_steps))
    with torch.no_grad():
        cond = predict(z, timestep, prompt)
    updates = 0
    for _ in range(settings.num_inner_steps):
        guided = classifier_free_guidance(predict(z, timestep, null), cond, settings.guidance_scale)
        loss = F.mse_loss(ddim_step(schedule, z, guided, t, t - 1), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates += 1
        if loss.item() < settings.threshold_at(level, schedule.num_steps):
            break
    return null.detach(), updates
