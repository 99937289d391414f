"""Samples images and their edits in one batch, from their noise down."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from nti_batch.diffusion.attention_trace import AttentionTrace
from nti_batch.diffusion.ddim import all_at, ddim_step, predict_at
from nti_batch.diffusion.ddpm import add_noise_maps, ddpm_mean
from nti_batch.diffusion.edit_guidance import EditGuidance
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.prompt_to_prompt import AttentionControl, LocalBlend, StepControl
from nti_batch.diffusion.schedule import DDIMSchedule

Controlled = Callable[[StepControl], AbstractContextManager[None]]
"""Puts the network's attention under control within a `with` block."""


@torch.no_grad()
def edit_sample(
    predict: Predictor,
    controlled: Controlled,
    schedule: DDIMSchedule,
    noise_latents: Tensor,
    prompt_embeddings: Tensor,
    null_embeddings: Sequence[Tensor],
    guidance: EditGuidance,
    control: AttentionControl,
    pivot: Sequence[Tensor] | None = None,
    shares_noise_maps: bool = False,
    trace: AttentionTrace | None = None,
) -> Tensor:
    """Sample sources and their edits from z_T down to z_0, [rows, channels, height, width].

    An edit starts from its source's z_T, or after the steps that it skips from its source's latents there. It is guided
    away from its source's null embeddings.

    Args:
        predict: The frozen network.
        controlled: Controls the attention of that network; used for the evaluations of the prompts, and where a method
            controls them, for those of the null embeddings.
        schedule: The noise levels.
        noise_latents: z_T, [images, channels, height, width].
        prompt_embeddings: C, [rows, tokens, dim].
        null_embeddings: T unconditional embeddings, each [images, tokens, dim]; the first belongs to t = T.
        guidance: The guidance of these rows.
        control: The control of these rows.
        pivot: z*_{T-1} ... z*_0 of direct or edit-friendly DDPM inversion, each [images, channels, height, width],
            which replace the latents of the sources after each step.
        shares_noise_maps: Whether the pivot is of edit-friendly DDPM inversion, whose edits take over the noise maps.
        trace: Receives the attention of the rows.
    """
    rows, num_steps, blend = control.rows, schedule.num_steps, LocalBlend(control)
    # where a pivot gives the sources, no network is needed before the first edit leaves its source
    first = guidance.first_step if pivot else 0
    latents = (pivot[first - 1] if pivot and first else noise_latents)[rows.image_of]
    for step in range(first, num_steps):
        t = num_steps - step
        of_prompts = control.at(t, blend, trace)
        with controlled(of_prompts):
            prediction = predict_at(predict, schedule, latents, t, prompt_embeddings)
        shares = None
        if guidance.is_guided:
            of_null = of_prompts.of_null()
            with controlled(of_null) if of_null else nullcontext():
                uncond = predict_at(predict, schedule, latents, t, null_embeddings[step][rows.image_of])
            prediction, shares = guidance.guide(uncond, prediction, step)
        if pivot and shares_noise_maps:
            latents = add_noise_maps(ddpm_mean(schedule, latents, prediction, t), pivot[step], rows)
        else:
            latents = ddim_step(schedule, latents, prediction, all_at(t, latents), all_at(t - 1, latents))
        if pivot:
            latents = latents.index_copy(0, rows.sources, pivot[step])
        sources, skips = latents[rows.source_of], guidance.skips(step)
        if shares is not None:
            latents = latents.lerp(sources, shares)
        if skips is not None:
            latents = torch.where(skips[:, None, None, None], sources, latents)
            blend.restart(skips)
        latents = blend(latents, t)
    if trace:
        trace.mask = blend.mask
    return latents
