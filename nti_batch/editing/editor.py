"""Edits images from their inversions: a batch has a row for each source and for each edit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from nti_batch.data.images import to_bytes, to_image
from nti_batch.diffusion.attention_trace import AttentionTrace
from nti_batch.diffusion.edit_control import EditControl
from nti_batch.diffusion.edit_guidance import EditGuidance
from nti_batch.diffusion.edit_sample import edit_sample
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.prompt_to_prompt import AttentionControl
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.fingerprint import compare_fingerprints
from nti_batch.models.load import load_model
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.inversions import open_inversions
from nti_batch.output.run_file import RUN_FILE
from nti_batch.output.serialization import StoredInversion

_DEFAULTS = EditSettings()


@dataclass(frozen=True, slots=True, eq=False)
class ControlledEdit:
    """Prompt of an edit, with the attention control that its settings and the two prompts give."""

    prompt: str
    settings: EditSettings
    control: EditControl

    @classmethod
    def of(cls, networks: StableDiffusion, source_prompt: str, prompt: str, settings: EditSettings) -> "ControlledEdit":
        """Find the words of the settings in the prompts.

        Args:
            networks: Networks of the run, for their tokenizer.
            source_prompt: Prompt of the source.
            prompt: Prompt of the edit.
            settings: Settings of the edit.

        Raises:
            ValueError: If a word is not in its prompt, or the prompts cannot be aligned.
        """
        control = EditControl.of(networks.tokenize(source_prompt), networks.tokenize(prompt), settings)
        return cls(prompt, settings, control)


class StopRequestedError(Exception):
    """A stop is requested, so the job needs no more images."""


@torch.no_grad()
def edit_images(
    networks: StableDiffusion,
    images: Sequence[tuple[StoredInversion, Sequence[ControlledEdit]]],
    inversion: InversionSettings,
    stop_requested: Callable[[], bool] = lambda: False,
    trace: AttentionTrace | None = None,
) -> list[Tensor]:
    """Reconstruct images and edit them in one batch.

    Args:
        networks: Networks of the run.
        images: Inversions of one run, each with its edits, if any.
        inversion: Settings of the inversions.
        stop_requested: Function that returns whether a stop is requested; called before each UNet call.
        trace: Receives the attention of the rows.

    Returns:
        For each image the reconstructed source and its edits, [1 + edits, 3, height, width] in [0, 1], on the CPU.

    Raises:
        StopRequestedError: If a stop is requested before the last UNet call.
    """

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        if stop_requested():
            raise StopRequestedError
        return networks.predict(latents, timesteps, embeddings)

    latents = _sample(networks, predict, images, inversion, trace)
    # one image in a call: at the size of Stable Diffusion the VAE needs more memory for an image than the UNet
    decoded = torch.cat([networks.decode_latents(row[None]).cpu() for row in latents])
    return list(decoded.split([1 + len(edits) for _, edits in images]))


def _sample(
    networks: StableDiffusion,
    predict: Predictor,
    images: Sequence[tuple[StoredInversion, Sequence[ControlledEdit]]],
    inversion: InversionSettings,
    trace: AttentionTrace | None,
) -> Tensor:
    """Sample the latents of sources and edits, [rows, channels, height, width]."""
    stored = [inversion for inversion, _ in images]
    prompts = [prompt for s, edits in images for prompt in (s.prompt, *(edit.prompt for edit in edits))]
    null_embeddings = torch.stack([s.null_embeddings for s in stored], 1).to(networks.device)
    noise_latents = torch.stack([s.noise_latents for s in stored]).to(networks.device)
    pivots = [s.pivot for s in stored if s.pivot is not None]
    height, width = noise_latents.shape[-2:]
    num_steps = len(null_embeddings)
    control = AttentionControl.of(
        [[edit.control for edit in edits] for _, edits in images],
        num_steps,
        (height, width),
        networks.cross_attention_sizes(height, width),
        networks.device,
    )
    settings = [[edit.settings for edit in edits] for _, edits in images]
    return edit_sample(
        predict,
        networks.controlled,
        networks.schedule(num_steps),
        noise_latents,
        networks.embed_prompts(prompts),
        list(null_embeddings),
        EditGuidance.of(inversion.guidance_scale, settings, num_steps, networks.device),
        control,
        list(torch.stack(pivots, 1).to(networks.device)) if pivots else None,
        inversion.method == "ddpm",
        trace,
    )


class Editor:
    """Edits inverted images with a model that is loaded once."""

    def __init__(self, model: str | Path | ModelSource | StableDiffusion) -> None:
        """Load the model.

        Args:
            model: Output folder of `nti-batch invert`, whose model is loaded; or a model, as `load_model` takes or
                returns it.

        Raises:
            ValueError: If it is no run and no model.
        """
        if isinstance(model, StableDiffusion):
            self.networks = model
        elif isinstance(model, ModelSource) or not (Path(model) / RUN_FILE).exists():
            self.networks = load_model(model)
        else:
            run = open_inversions(model).settings
            self.networks = load_model(run.source, run.precision, run.fingerprint)

    def edit(
        self, inversion: StoredInversion, prompt: str | None = None, settings: EditSettings = _DEFAULTS
    ) -> Image.Image:
        """Edit one image.

        Args:
            inversion: Inversion from `read_inversions`, `InversionDataset` or `invert_image`.
            prompt: Prompt of the edit; None reconstructs the source.
            settings: Settings of the edit.

        Returns:
            The edited image, or the reconstructed source.

        Raises:
            ValueError: If a word is not in its prompt, the prompts cannot be aligned, the inversion is of another
                model, or the edited image is not finite.
        """
        if self.networks.source:
            compare_fingerprints(self.networks.source, self.networks.fingerprint, inversion.settings.fingerprint)
        edits = [] if prompt is None else [ControlledEdit.of(self.networks, inversion.prompt, prompt, settings)]
        (results,) = edit_images(self.networks, [(inversion, edits)], inversion.settings.inversion)
        if not results[-1].isfinite().all():
            raise ValueError(f"the edited image of {inversion.key!r} is not finite")
        return to_image(to_bytes(results[-1]))


def edit_image(
    inversion: StoredInversion, prompt: str | None = None, settings: EditSettings = _DEFAULTS
) -> Image.Image:
    """Load the model of an inversion and edit one image, as `Editor.edit` does; use an `Editor` for several."""
    run = inversion.settings
    return Editor(load_model(run.source, run.precision, run.fingerprint)).edit(inversion, prompt, settings)
