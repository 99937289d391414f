"""Samples of sources and edits with a network of a few lines, whose attention nothing controls."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nti_batch.diffusion.edit_control import EditControl
from nti_batch.diffusion.edit_guidance import EditGuidance
from nti_batch.diffusion.edit_sample import edit_sample
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.prompt_to_prompt import AttentionControl
from nti_batch.diffusion.schedule import DDIMSchedule


@dataclass(frozen=True)
class Source:
    """An image with its edits: the embedding of each edit's prompt, and its settings."""

    noise: Tensor
    prompt: Tensor
    edits: Sequence[tuple[Tensor, EditSettings]] = field(default_factory=list)
    pivot: Sequence[Tensor] | None = None


def random_source(seed: int, *settings: EditSettings) -> Source:
    """An image of 2 x 2 pixels, with edits that have these settings."""
    generator = torch.Generator().manual_seed(seed)
    noise, prompt, *edits = (torch.randn(4, 4, generator=generator) for _ in range(2 + len(settings)))
    return Source(noise.view(4, 2, 2), 0.3 * prompt, [(0.3 * e, s) for e, s in zip(edits, settings, strict=True)])


def sample_rows(
    predict: Predictor,
    schedule: DDIMSchedule,
    sources: Sequence[Source],
    null: Tensor,
    scale: float,
    shares_noise_maps: bool = False,
) -> Tensor:
    """z_0 of the rows; `null` is the null embedding of every image and step."""
    steps, images = schedule.num_steps, len(sources)
    size = tuple(sources[0].noise.shape[-2:])
    pivots = [torch.stack(list(source.pivot)) for source in sources if source.pivot is not None]
    return edit_sample(
        predict,
        lambda control: nullcontext(),
        schedule,
        torch.stack([source.noise for source in sources]),
        torch.stack([row for source in sources for row in (source.prompt, *(prompt for prompt, _ in source.edits))]),
        [null.expand(images, *null.shape)] * steps,
        EditGuidance.of(scale, [[s for _, s in source.edits] for source in sources], steps, torch.device("cpu")),
        AttentionControl.of(
            [[EditControl.none(1) for _ in source.edits] for source in sources],
            steps,
            (size[0], size[1]),
            [(size[0], size[1])],
            torch.device("cpu"),
        ),
        list(torch.stack(pivots, 1)) if pivots else None,
        shares_noise_maps,
    )
