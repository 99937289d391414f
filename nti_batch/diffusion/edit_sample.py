"""Samples images and their edits in one batch, from their noise down."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat

import torch
from torch import Tensor

from nti_batch.diffusion.ddim import guided_step, predict_at
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
    guidance_scale: float,
    control: AttentionControl,
    pivot: Sequence[Tensor] | None = None,
) -> Tensor:
    """Sample sources and their edits from z_T down to z_0, [rows, channels, height, width].

    An edit starts from its source's z_T and is guided away from its source's null embeddings.

    Args:
        predict: The frozen network.
        controlled: Controls the attention of that network; used for the evaluations of the prompts, and where a method
            controls them, for those of the null embeddings.
        schedule: The noise levels.
        noise_latents: z_T, [images, channels, height, width].
        prompt_embeddings: C, [rows, tokens, dim].
        null_embeddings: T unconditional embeddings, each [images, tokens, dim]; the first belongs to t = T.
        guidance_scale: w; at 1 the unconditional embeddings are not used.
        control: The control of these rows.
        pivot: z*_{T-1} ... z*_0 of direct inversion, each [images, channels, height, width], which replace the latents
            of the sources after each step.
    """
    rows, num_steps, blend = control.rows, schedule.num_steps, LocalBlend(control)
    latents, targets = noise_latents[rows.image_of], pivot or repeat(None, num_steps)
    for t, null_embedding, target in zip(range(num_steps, 0, -1), null_embeddings, targets, strict=True):
        step = control.at(t, blend)
        with controlled(step):
            cond = predict_at(predict, schedule, latents, t, prompt_embeddings)
        null_rows = null_embedding[rows.image_of]
        null_control = step.of_null()
        with controlled(null_control) if null_control else nullcontext():
            latents = guided_step(predict, schedule, latents, t, cond, null_rows, guidance_scale)
        if target is not None:
            latents = latents.index_copy(0, rows.sources, target)
        latents = blend(latents, t)
    return latents
