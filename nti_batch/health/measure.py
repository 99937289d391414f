"""Measures a model on a few images: its VAE, its noise prediction, its captions, inversions and edits."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.benchmarks.job_loop import job_loop
from nti_batch.benchmarks.loop_result import Inverted
from nti_batch.benchmarks.timing import peak_bytes, synchronize
from nti_batch.diffusion.ddim import ddim_sample
from nti_batch.diffusion.schedule import PredictionType
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.editing.editor import ControlledEdit, edit_images
from nti_batch.health.images import COLOURS, ColourEdit, edit_of
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import StoredInversion
from nti_batch.records import CaptionedImage
from nti_batch.scores.metrics import psnr

NOISE_SHARES = (0.15, 0.35, 0.55, 0.75, 0.95)
"""Timesteps at which noise is predicted, as shares of the training's."""

NOISES = 4
"""Noises of an image at each timestep."""

CHANGED_SHARE = 0.05
"""Share of the pixels, those that an edit changes most, whose colour counts."""

MAX_SHOWN = 256
"""Largest side of an image of the preview, in pixels, so that it can be attached to a bug report."""

Edited = tuple[ColourEdit, Tensor, Tensor]
"""An edit, the reconstructed source and the edited image."""

PREDICTIONS: tuple[PredictionType, ...] = ("epsilon", "v_prediction")


@dataclass(frozen=True, slots=True, eq=False)
class PredictionErrors:
    """Squared errors of predicted noise, each a mean over one latent, [timesteps x noises, images]."""

    by_type: dict[PredictionType, Tensor]
    """Errors if the network's output is taken for each type."""

    of_nothing: Tensor
    """Errors of the noisy latents themselves as a prediction, which knows neither image nor network."""

    def unexplained(self, kind: PredictionType) -> float:
        """Error of a type as a share of that of a prediction that knows nothing; nan if it is not finite."""
        return (self.by_type[kind].mean() / self.of_nothing.mean()).item()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replays:
    """Mean PSNR of replayed inversions against the input, in dB, and figures of edits."""

    ddim_1: float
    """DDIM inversion at guidance scale 1."""

    ddim: float
    """DDIM inversion at the guidance scale of null-text inversion."""

    null_text: float
    colour: float
    """Mean `colour_way` of the edits."""

    unedited: float
    """Mean PSNR of edits outside of the object's box, in dB."""

    images_per_hour: float
    """Null-text inversions an hour, with all images in a batch."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """Figures of a model."""

    psnr_vae: float
    """Mean PSNR of the VAE round trip against the input, in dB."""

    psnr_second_trip: float
    """Mean PSNR of a second VAE round trip against the first, in dB."""

    latent_std: float
    """Standard deviation of the scaled latents."""

    unexplained: dict[PredictionType, float]
    """`PredictionErrors.unexplained` of each type."""

    caption_share: float
    """Share of the comparisons in which an image's own caption predicts its noise better than another image's."""

    replays: Replays | None
    """Inversions and edits; None if the networks give numbers that are not finite."""

    peak_bytes: int
    rows: list[tuple[list[str], Tensor, list[str]]]
    """Captions, images and labels of each row of the preview."""


def measure(networks: StableDiffusion, images: Sequence[CaptionedImage], num_steps: int) -> Measured:
    """Measure a model.

    Args:
        networks: The model.
        images: Images of the model's size, at least two.
        num_steps: Number of DDIM steps, T.
    """
    pixels = torch.stack([image.pixels for image in images]).to(networks.device)
    latents = torch.cat([networks.encode_images(image[None]) for image in pixels])
    inputs, round_trip = pixels / 255, _decode(networks, latents)
    second = _decode(networks, torch.cat([networks.encode_images(255 * image[None]) for image in round_trip]))
    prompts = networks.embed_prompts([image.prompt for image in images])
    errors = prediction_errors(networks, latents, prompts)
    unexplained = {kind: errors.unexplained(kind) for kind in PREDICTIONS}
    columns = {"input": inputs, "VAE": round_trip}
    edited: dict[str, Edited] = {}
    replays = None
    if all(map(isfinite, unexplained.values())) and round_trip.isfinite().all():
        replays, more, edited = _replay(networks, images, prompts, inputs, num_steps)
        columns |= more
    return Measured(
        psnr_vae=_mean_psnr(round_trip, inputs),
        psnr_second_trip=_mean_psnr(second, round_trip),
        latent_std=latents.std().item(),
        unexplained=unexplained,
        caption_share=caption_share(networks, latents, prompts, errors),
        replays=replays,
        peak_bytes=peak_bytes(networks.device),
        rows=[
            _row(image, [column[i] for column in columns.values()], list(columns), edited.get(image.key))
            for i, image in enumerate(images)
        ],
    )


def _replay(
    networks: StableDiffusion, images: Sequence[CaptionedImage], prompts: Tensor, inputs: Tensor, num_steps: int
) -> tuple[Replays, dict[str, Tensor], dict[str, Edited]]:
    """Invert, replay and edit; return the figures, the replayed images by label, and the edits by key."""
    settings, schedule = InversionSettings(), networks.schedule(num_steps)
    synchronize(networks.device)
    started = time.perf_counter()
    inverted = job_loop(networks, networks.predict, images, schedule, settings, len(images), "float32")
    synchronize(networks.device)
    seconds = time.perf_counter() - started
    noise = torch.stack([found.noise_latents for found in inverted])
    nulls = [networks.embed_prompts([""]).expand_as(prompts)] * num_steps

    def replay(scale: float) -> Tensor:
        return _decode(networks, ddim_sample(networks.predict, schedule, noise, prompts, nulls, scale))

    guided = f"DDIM, w = {settings.guidance_scale:g}"
    shown = {"DDIM, w = 1": replay(1.0), guided: replay(settings.guidance_scale)}
    shown["null-text"] = _decode(networks, torch.stack([found.latents for found in inverted]))
    edited = _edit(networks, images, inverted, settings)
    outside = [psnr_outside(*found) for found in edited.values()]
    replays = Replays(
        ddim_1=_mean_psnr(shown["DDIM, w = 1"], inputs),
        ddim=_mean_psnr(shown[guided], inputs),
        null_text=_mean_psnr(shown["null-text"], inputs),
        colour=fmean(colour_way(*found) for found in edited.values()),
        unedited=fmean(found for found in outside if found is not None),
        images_per_hour=3600 * len(images) / seconds,
    )
    return replays, shown, edited


def _row(
    image: CaptionedImage, shown: list[Tensor], titles: list[str], edited: Edited | None
) -> tuple[list[str], Tensor, list[str]]:
    """Make a row of the preview; without an edit, its last image is black."""
    asked = f"edit: {edited[0].prompt(image.prompt)}" if edited else "no edit"
    last = edited[2].to(shown[0]) if edited else torch.zeros_like(shown[0])
    images = torch.stack([*shown, last]).cpu()
    if max(images.shape[-2:]) > MAX_SHOWN:
        images = F.interpolate(images, scale_factor=MAX_SHOWN / max(images.shape[-2:]), mode="area")
    return [f"{image.key}: {image.prompt}", asked], images, [*titles, "edit"]


def _mean_psnr(images: Tensor, references: Tensor) -> float:
    return psnr(images, references).mean().item()


def _decode(networks: StableDiffusion, latents: Tensor) -> Tensor:
    """Decode one image at a time, which takes less memory."""
    return torch.cat([networks.decode_latents(row[None]) for row in latents])


@torch.no_grad()
def prediction_errors(networks: StableDiffusion, latents: Tensor, prompts: Tensor) -> PredictionErrors:
    """Add noise to latents, predict it, and compare. The noises are the same in each call."""
    by_type: dict[PredictionType, list[Tensor]] = {kind: [] for kind in PREDICTIONS}
    of_nothing = []
    generator = torch.Generator().manual_seed(0)
    for share in NOISE_SHARES:
        timestep = int(share * len(networks.alphas_cumprod))
        abar = networks.alphas_cumprod[timestep]
        for _ in range(NOISES):
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
            timesteps = torch.full((len(latents),), timestep, device=latents.device)
            output = networks.predict(noisy, timesteps, prompts)
            velocity = abar.sqrt() * output + (1 - abar).sqrt() * noisy
            by_type["epsilon"].append(_error(output, noise))
            by_type["v_prediction"].append(_error(velocity, noise))
            of_nothing.append(_error((1 - abar).sqrt() * noisy, noise))
    return PredictionErrors({kind: torch.stack(errors) for kind, errors in by_type.items()}, torch.stack(of_nothing))


def _error(predicted: Tensor, noise: Tensor) -> Tensor:
    return (predicted - noise).square().mean(dim=(1, 2, 3))


def caption_share(networks: StableDiffusion, latents: Tensor, prompts: Tensor, own: PredictionErrors) -> float:
    """Compare each image's own caption with all others; the type of the network is the one that fits better."""
    kind = min(PREDICTIONS, key=own.unexplained)
    others = [
        prediction_errors(networks, latents, prompts.roll(shift, 0)).by_type[kind] for shift in range(1, len(latents))
    ]
    return torch.stack([own.by_type[kind] < other for other in others]).float().mean().item()


def _edit(
    networks: StableDiffusion,
    images: Sequence[CaptionedImage],
    inverted: Sequence[Inverted],
    settings: InversionSettings,
) -> dict[str, Edited]:
    """Edit the images that have a colour edit; return each with its reconstruction and the edited image, by key."""
    found = {}
    for image, inversion in zip(images, inverted, strict=True):
        if edit := edit_of(image):
            stored = StoredInversion(
                image.unit.shard, image.key, image.prompt, inversion.noise_latents, inversion.null_embeddings, {}
            )
            control = ControlledEdit.of(networks, image.prompt, edit.prompt(image.prompt), edit.settings)
            (pair,) = edit_images(networks, [(stored, [control])], settings)
            found[image.key] = (edit, pair[0], pair[1])
    return found


def colour_way(edit: ColourEdit, source: Tensor, edited: Tensor) -> float:
    """Share of the way from the old colour to the new one that the pixels that change most have gone.

    It is 1 at the new colour, 0 at the old one and at all that are as far from the new one.

    Args:
        edit: The edit.
        source: Reconstructed source, [3, height, width] in [0, 1].
        edited: Edited image, in the same form.
    """
    change = (edited - source).flatten(1)
    count = max(1, round(CHANGED_SHARE * change.shape[1]))
    most = change[:, change.norm(dim=0).topk(count).indices].mean(dim=1)
    asked = torch.tensor(COLOURS[edit.new]) - torch.tensor(COLOURS[edit.old])
    return 1 - torch.dist(asked, most).item() / asked.square().sum().sqrt().item()


def psnr_outside(edit: ColourEdit, source: Tensor, edited: Tensor) -> float | None:
    """PSNR of an edited image against its source outside of the object's box; None if the box is the whole image."""
    height, width = source.shape[1:]
    left, top, right, bottom = edit.box
    outside = torch.ones(height, width, dtype=torch.bool)
    outside[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = False
    return psnr(edited[None], source[None], outside[None]).item() if outside.any() else None
