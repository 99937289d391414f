"""Edited pictures from inversions: rows of sources and edits through the networks of their run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from nti_batch.data.images import to_bytes, to_image
from nti_batch.diffusion.edit_settings import EditControl, EditSettings
from nti_batch.diffusion.prompt_to_prompt import AttentionControl, edit_sample
from nti_batch.models.load import load_model
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import StoredInversion

_DEFAULTS = EditSettings()


@dataclass(frozen=True, slots=True, eq=False)
class ControlledEdit:
    """An edit of which the words have been found in the prompts."""

    prompt: str
    control: EditControl

    @classmethod
    def of(cls, networks: StableDiffusion, source_prompt: str, prompt: str, settings: EditSettings) -> "ControlledEdit":
        """Look up the words.

        Raises:
            ValueError: If a word is not in its prompt, or the prompts cannot be aligned.
        """
        return cls(prompt, EditControl.of(networks.tokenize(source_prompt), networks.tokenize(prompt), settings))


class StopRequestedError(Exception):
    """The pictures are not wanted any more."""


@torch.no_grad()
def edit_images(
    networks: StableDiffusion,
    images: Sequence[tuple[StoredInversion, Sequence[ControlledEdit]]],
    guidance_scale: float,
    stop_requested: Callable[[], bool] = lambda: False,
) -> list[Tensor]:
    """Rebuild images and edit them in one batch.

    Args:
        networks: Those of the run.
        images: Inversions of one run, each with its edits, if any.
        guidance_scale: Guidance scale of the inversions.
        stop_requested: Asked before each evaluation of the network.

    Returns:
        For each image the source and its edits, [1 + edits, 3, height, width] in [0, 1], on the CPU.

    Raises:
        StopRequestedError: If a stop is requested before they are made.
    """

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        if stop_requested():
            raise StopRequestedError
        return networks.predict(latents, timesteps, embeddings)

    stored = [inversion for inversion, _ in images]
    prompts = [prompt for s, edits in images for prompt in (s.prompt, *(edit.prompt for edit in edits))]
    null_embeddings = torch.stack([s.null_embeddings for s in stored], 1).to(networks.device)
    noise_latents = torch.stack([s.noise_latents for s in stored]).to(networks.device)
    pivots = [s.pivot for s in stored if s.pivot is not None]
    pivot = list(torch.stack(pivots, 1).to(networks.device)) if pivots else None
    height, width = noise_latents.shape[-2:]
    control = AttentionControl.of(
        [[edit.control for edit in edits] for _, edits in images],
        len(null_embeddings),
        (height, width),
        networks.cross_attention_sizes(height, width),
        networks.device,
    )
    latents = edit_sample(
        predict,
        networks.controlled,
        networks.schedule(len(null_embeddings)),
        noise_latents,
        networks.embed_prompts(prompts),
        list(null_embeddings),
        guidance_scale,
        control,
        pivot,
    )
    # one at a time: in Stable Diffusion's size the VAE needs more memory for a picture than the UNet
    pictures = torch.cat([networks.decode_latents(row[None]).cpu() for row in latents])
    return list(pictures.split([1 + len(edits) for _, edits in images]))


def edit_image(
    inversion: StoredInversion,
    prompt: str | None,
    settings: EditSettings = _DEFAULTS,
    networks: StableDiffusion | None = None,
) -> Image.Image:
    """Edit one image.

    Args:
        inversion: As `read_inversions` gives it.
        prompt: Of the edit; None rebuilds the source.
        settings: What happens to the attention.
        networks: Those of the inversion's run; None loads them.

    Raises:
        ValueError: If a word is not in its prompt, the prompts cannot be aligned, or the picture is not finite.
    """
    if networks is None:
        networks = load_model(inversion.settings.source, inversion.settings.precision)
    edits = [] if prompt is None else [ControlledEdit.of(networks, inversion.prompt, prompt, settings)]
    (pictures,) = edit_images(networks, [(inversion, edits)], inversion.settings.inversion.guidance_scale)
    if not pictures[-1].isfinite().all():
        raise ValueError(f"the edited picture of {inversion.key!r} is not finite")
    return to_image(to_bytes(pictures[-1]))
