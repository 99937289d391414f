"""Inverts images by the pool as the job does, without a Trainer and without files."""

from collections.abc import Iterator, Sequence
from itertools import islice

from torch import Tensor

from nti_batch.benchmarks.loop_result import Inverted
from nti_batch.data.samples import RawSample, Reading, decode_sample, read_unit
from nti_batch.data.shards import Shards, work_units
from nti_batch.diffusion.ddpm import image_seed
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.null_text import InvertedImage
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import pack_tensors
from nti_batch.records import CaptionedImage


def load_images(
    shards: Shards, caption: str, size: tuple[int, int], count: int, allow_pipe: bool = False
) -> list[CaptionedImage]:
    """Load the first decodable images of some shards.

    Args:
        shards: Address of each shard by its name.
        caption: Place of the prompts, as for `nti-batch invert`.
        size: Height and width in pixels.
        count: Number of images.
        allow_pipe: Whether a shard may be a shell command.

    Raises:
        ValueError: If there are fewer, or a shard is a command and may not be.
    """
    units = work_units(shards, 1)
    samples = (sample for unit in units for sample in read_unit(unit, caption, Reading(allow_pipe=allow_pipe)))
    decoded = (decode_sample(sample, *size) for sample in samples if isinstance(sample, RawSample))
    images = list(islice((image for image in decoded if isinstance(image, CaptionedImage)), count))
    if len(images) < count:
        raise ValueError(f"--images is {count}, and the shards hold {len(images)}: give more shards or ask for fewer")
    return images


def pool_inputs(
    networks: StableDiffusion, images: Sequence[CaptionedImage], settings: InversionSettings
) -> Iterator[tuple[int, Tensor, Tensor, int]]:
    """Encode images, one after the other, to what the pool's `run` takes; their keys are their numbers."""
    for key, image in enumerate(images):
        latents = networks.encode_images(image.pixels[None])[0]
        yield key, latents, networks.embed_prompts([image.prompt])[0], image_seed(settings.noise_seed, image.pixels)


def job_loop(
    networks: StableDiffusion,
    predict: Predictor,
    images: Sequence[CaptionedImage],
    schedule: DDIMSchedule,
    settings: InversionSettings,
    batch_size: int,
    storage: Storage,
) -> list[Inverted]:
    """Invert images as the job does; the results are in the order of the images."""
    empty = networks.embed_prompts([""])[0]
    pool = InversionPool[int](predict, schedule, settings, empty, batch_size, storage)
    done = {key: _inverted(image, storage) for key, image in pool.run(pool_inputs(networks, images, settings))}
    return [done[key] for key in range(len(images))]


def _inverted(image: InvertedImage, storage: Storage) -> Inverted:
    noise, start, embeddings = image.trajectory[-1], image.start_embedding, image.null_embeddings
    stored = pack_tensors(storage, noise, start, embeddings, image.pivot)
    return Inverted(noise, image.latents, start, embeddings, image.pivot, image.forwards, image.backwards, len(stored))
