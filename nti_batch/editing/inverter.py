"""Inverts single images in Python, and turns a finished inversion of the pool into its record."""

import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import cast

import torch
from PIL import ExifTags, Image
from torch import Tensor

from nti_batch.data.images import UPRIGHT, decode_original, orientation_of
from nti_batch.data.samples import read_caption
from nti_batch.diffusion.batch_size import in_batches
from nti_batch.diffusion.ddpm import image_seed
from nti_batch.diffusion.host import upload
from nti_batch.diffusion.null_text import InvertedImage
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.load import load_model
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription
from nti_batch.output.serialization import StoredInversion, decode_inversion, encode_inversion
from nti_batch.records import CaptionedImage, Failure, Fit, Inversion, WorkUnit
from nti_batch.scores.metrics import psnr
from nti_batch.settings import InversionRunSettings

_DEFAULTS = InversionSettings()
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
_SHARD = "images"
"""Name of the shard of single images, as of a folder of images."""


def invert_image(
    image: Image.Image | str | Path,
    prompt: str,
    model: str | Path | ModelSource | StableDiffusion = "demo",
    *,
    settings: InversionSettings = _DEFAULTS,
    num_steps: int = 50,
    height: int | None = None,
    width: int | None = None,
    fit: Fit = "crop",
    optimize_pooled: bool = False,
) -> StoredInversion:
    """Invert one image, as `nti-batch invert` does. For many images, run that job: it resumes and uses batches.

    Args:
        image: The image, or the path of its file.
        prompt: Its caption.
        model: The model from `load_model`, or what that takes.
        settings: Settings of the method, as the flags of `--model` say.
        num_steps: Number of DDIM steps, T.
        height: Height to invert at, in pixels; None for the model's own.
        width: Width, likewise.
        fit: How the image is fitted to that size: 'crop', 'pad' or 'stretch'.
        optimize_pooled: Whether null-text optimization also updates Stable Diffusion XL's pooled embedding.

    Returns:
        The inversion, which `Editor` and `edit_image` take. Its key is the name of the file, or 'image'.

    Raises:
        ValueError: If the image cannot be decoded, the prompt is empty, a setting is out of range, or the inversion is
            not finite.
    """
    networks = model if isinstance(model, StableDiffusion) else load_model(model)
    source = networks.source
    if source is None:
        raise ValueError("the model was not loaded by load_model, so that the inversion could not name it")
    size = ModelDescription.of(source).image_size(height, width)
    key = "image" if isinstance(image, Image.Image) else Path(image).stem
    captioned = _captioned_image(_content(image), key, prompt, size, fit)
    run = InversionRunSettings(
        source=source,
        fingerprint=networks.fingerprint,
        precision=cast(Precision, str(networks.unet.dtype).removeprefix("torch.")),
        num_steps=num_steps,
        optimize_pooled=optimize_pooled,
        inversion=settings,
        caption="txt",
        height=size[0],
        width=size[1],
        fit=fit,
        units_per_shard=1,
        is_folder=True,
        storage="float32",
    )
    result = invert_alone(networks, captioned, run)
    if isinstance(result, Failure):
        raise ValueError(f"the image {key!r} cannot be inverted: {result.error}")
    payload, metadata = encode_inversion(result, run)
    # as a run holds it
    stored = decode_inversion(payload, json.loads(json.dumps(metadata)))
    return dataclasses.replace(stored, pixels=captioned.pixels)


def _content(image: Image.Image | str | Path) -> bytes:
    """Content of an image's file; of an image in memory, that of a PNG."""
    if not isinstance(image, Image.Image):
        return Path(image).read_bytes()
    stream, exif = io.BytesIO(), Image.Exif()
    if (orientation := orientation_of(image)) in UPRIGHT:
        exif[ExifTags.Base.Orientation] = orientation
    shown = image if image.mode in _PNG_MODES else image.convert("RGB")
    shown.save(stream, "PNG", exif=exif)
    return stream.getvalue()


def _captioned_image(data: bytes, key: str, prompt: str, size: tuple[int, int], fit: Fit) -> CaptionedImage:
    caption = prompt.encode()
    pixels, original = decode_original(data, *size, max_memory=None, fit=fit)
    checksum = hashlib.sha256(data + caption).hexdigest()
    return CaptionedImage(WorkUnit(_SHARD, "", 0, 1), key, read_caption(caption), pixels, checksum, original)


def invert_alone(
    networks: StableDiffusion,
    image: CaptionedImage,
    run: InversionRunSettings,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Inversion | Failure:
    """Invert one image, as a job does with a batch size of 1.

    Args:
        networks: The model.
        image: The image, of the run's size.
        run: Settings of the run.
        on_progress: Called between UNet calls with the share of the work that is done, from 0 to 1.
    """
    started, schedule = time.monotonic(), networks.schedule(run.num_steps)
    with torch.inference_mode(False), torch.enable_grad():
        pool: InversionPool[str] = InversionPool(
            partial(networks.predict, optimize_pooled=run.optimize_pooled),
            schedule,
            run.inversion,
            networks.embed_prompts([""])[0],
            batch_size=1,
            storage=run.storage,
        )
        latents, prompt = networks.encode_images(image.pixels[None])[0], networks.embed_prompts([image.prompt])[0]
        pool.admit(image.key, latents, prompt, image_seed(run.inversion.noise_seed, image.pixels))
        while not (finished := pool.advance()):
            on_progress(pool.progress(image.key))
    ((_, inverted),) = finished
    seconds = time.monotonic() - started
    if inverted.error:
        return failure(image, "inversion", inverted.error)
    scores = compare_with_input(networks, [(image, inverted)], batch_size=2).flatten().tolist()
    timesteps = schedule.network_timesteps[1:].flip(0).tolist()
    return finished_inversion(networks, timesteps, image, inverted, scores, seconds)


def compare_with_input(
    networks: StableDiffusion, images: Sequence[tuple[CaptionedImage, InvertedImage]], batch_size: int
) -> Tensor:
    """PSNR of reconstructions, and of the VAE's round trips, both against the input, [2, images].

    The values are on the device, which nothing here waits for.

    Args:
        networks: The model.
        images: Images with their inversions, none of which has failed.
        batch_size: Most images in one call of the VAE, which decodes each image twice.
    """
    latents = [inverted.latents for _, inverted in images] + [inverted.trajectory[0] for _, inverted in images]
    decoded = in_batches(networks.decode_latents, torch.stack(latents), batch_size)
    pixels = upload(torch.stack([image.pixels for image, _ in images]), decoded.device) / 255
    return torch.stack([psnr(half, pixels) for half in decoded.chunk(2)])


def finished_inversion(
    networks: StableDiffusion,
    timesteps: list[int],
    image: CaptionedImage,
    inverted: InvertedImage,
    scores: Sequence[float],
    seconds: float,
) -> Inversion | Failure:
    """The record of an inversion; a failure if an image is not finite.

    Args:
        networks: The model.
        timesteps: The network's timesteps, the noisiest first.
        image: The input.
        inverted: Its inversion, which has not failed.
        scores: Both values of `compare_with_input`.
        seconds: Time that the inversion took.
    """
    reached, round_trip = scores
    if not (isfinite(reached) and isfinite(round_trip)):
        error = f"the PSNR is {reached}, and {round_trip} for the VAE's round trip: an image is not finite"
        return failure(image, "reconstruction", error)
    return Inversion(
        unit=image.unit,
        key=image.key,
        prompt=image.prompt,
        prompt_truncated=networks.truncates(image.prompt),
        height=image.pixels.shape[1],
        width=image.pixels.shape[2],
        noise_latents=inverted.trajectory[-1],
        start_embedding=inverted.start_embedding,
        null_embeddings=inverted.null_embeddings,
        pivot=inverted.pivot,
        timesteps=timesteps,
        inner_steps=inverted.inner_steps,
        losses=inverted.losses,
        psnr=reached,
        psnr_vae=round_trip,
        forwards=inverted.forwards,
        backwards=inverted.backwards,
        seconds=seconds,
        input_sha256=image.input_sha256,
        pooled_dim=networks.pooled_dim,
        original=image.original,
    )


def failure(image: CaptionedImage, stage: str, error: str) -> Failure:
    """The failure of an image at a stage of its inversion."""
    return Failure(image.unit, image.key, stage, error, input_sha256=image.input_sha256)
