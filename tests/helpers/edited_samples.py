"""Samples of a tiny network under the control of prompt-to-prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor

from helpers.prompts import noise
from nti_batch.diffusion.ddim import ddim_sample
from nti_batch.diffusion.edit_control import EditControl
from nti_batch.diffusion.edit_guidance import EditGuidance
from nti_batch.diffusion.edit_sample import edit_sample
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.diffusion.prompt_to_prompt import AttentionControl
from nti_batch.models.stable_diffusion import StableDiffusion

STEPS = 10


SCALE = 7.5


GAIN = 3.0


ROUNDING = 1e-4
"""A start that differs in its last bit moves a sample by 3e-5; rows of one batch may be rounded differently."""


SOURCE = "a red circle on the left"


SWAP = EditSettings(kind="replace", cross_replace_steps=0.8, self_replace_steps=0.6)


def control_of(
    networks: StableDiffusion,
    edits: Sequence[tuple[str, Sequence[tuple[str, EditSettings]]]],
    size: tuple[int, int] = (8, 8),
) -> AttentionControl:
    controls = [
        [
            EditControl.of(networks.tokenize(source), networks.tokenize(prompt), settings)
            for prompt, settings in of_image
        ]
        for source, of_image in edits
    ]
    return AttentionControl.of(controls, STEPS, size, networks.cross_attention_sizes(*size), networks.device)


def guidance(edits: Sequence[tuple[str, Sequence[tuple[str, EditSettings]]]], scale: float = SCALE) -> EditGuidance:
    settings = [[settings for _, settings in of_image] for _, of_image in edits]
    return EditGuidance.of(scale, settings, STEPS, torch.device("cpu"))


def null_embeddings(images: int = 1) -> list[Tensor]:
    of_images = [torch.randn(STEPS, 77, 8, generator=torch.Generator().manual_seed(9 - i)) for i in range(images)]
    return list(torch.stack(of_images, 1))


def sample(
    networks: StableDiffusion,
    edits: Sequence[tuple[str, Sequence[tuple[str, EditSettings]]]],
    size: tuple[int, int] = (8, 8),
) -> Tensor:
    control = control_of(networks, edits, size)
    prompts = [prompt for source, of_image in edits for prompt in (source, *(p for p, _ in of_image))]
    inputs = (noise(size, len(edits)), networks.embed_prompts(prompts), null_embeddings(len(edits)))
    guided = guidance(edits)
    return edit_sample(networks.predict, networks.controlled, networks.schedule(STEPS), *inputs, guided, control)


def plain(networks: StableDiffusion, prompt: str, size: tuple[int, int] = (8, 8), image: int = 0) -> Tensor:
    nulls = [null[image:] for null in null_embeddings(image + 1)]
    inputs = (noise(size, image + 1)[image:], networks.embed_prompts([prompt]), nulls)
    return ddim_sample(networks.predict, networks.schedule(STEPS), *inputs, SCALE)
