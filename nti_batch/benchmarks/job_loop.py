"""Images through the pool as the job sends them, without a Trainer and without files."""

from collections.abc import Sequence
from itertools import islice

import torch

from nti_batch.benchmarks.inverted import Inverted
from nti_batch.data.samples import RawSample, read_unit
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.jobs.invert_datamodule import InversionDataModule
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import pack_tensors
from nti_batch.records import CaptionedImage


def load_images(data: InversionDataModule, size: int, count: int) -> list[CaptionedImage]:
    """The first good images of some shards, square.

    Raises:
        ValueError: If there are fewer.
    """
    data.height = data.width = size
    samples = (sample for unit in data.units for sample in read_unit(unit, data.caption, ()))
    decoded = (data.decode(sample) for sample in samples if isinstance(sample, RawSample))
    images = list(islice((image for image in decoded if isinstance(image, CaptionedImage)), count))
    if len(images) < count:
        raise ValueError(f"--images is {count}, and the shards hold {len(images)}: give more shards or ask for fewer")
    return images


def job_loop(
    networks: StableDiffusion,
    predict: Predictor,
    images: Sequence[CaptionedImage],
    schedule: DDIMSchedule,
    settings: InversionSettings,
    batch_size: int,
    storage: Storage,
) -> list[Inverted]:
    """Invert images as the job does; they come back in their order."""
    empty = networks.embed_prompts([""])[0]
    pool = InversionPool[int](predict, schedule, settings, empty, batch_size, storage)
    done: dict[int, Inverted] = {}

    def advance() -> None:
        for key, s in pool.tick():
            embeddings = torch.stack(s.null_embeddings)
            noise, start = s.trajectory[-1], s.start_embedding
            pivot = torch.stack(s.pivot).cpu() if s.pivot else None
            stored = pack_tensors(storage, noise.cpu(), start.cpu(), embeddings.cpu(), pivot)
            work = s.forwards, s.backwards, len(stored)
            done[key] = Inverted(noise, s.current_latents, start, embeddings, pivot, *work)

    for key, image in enumerate(images):
        while len(pool) == pool.capacity:
            advance()
        latents = networks.encode_pictures(image.pixels[None])[0]
        pool.admit(key, latents, networks.embed_prompts([image.prompt])[0])
    while len(pool):
        advance()
    return [done[key] for key in range(len(images))]
