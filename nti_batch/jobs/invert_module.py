"""The LightningModule of the inversion job: admits images to the pool and returns finished inversions."""

import gc
import logging
import time
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Literal

import torch
from lightning.pytorch import LightningModule

from nti_batch.diffusion.batch_size import find_batch_size
from nti_batch.diffusion.ddpm import image_seed
from nti_batch.diffusion.null_text import InversionState
from nti_batch.diffusion.pool import InversionPool
from nti_batch.jobs.networks import load_networks
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import CaptionedImage, EndOfUnit, Failure, Inversion, Outcome
from nti_batch.scores.metrics import psnr
from nti_batch.settings import InversionRunSettings

logger = logging.getLogger(__name__)
NEEDS_GRADIENTS = "null-text inversion needs gradients: set --trainer.inference_mode=false"


@dataclass(frozen=True, slots=True, eq=False)
class InFlight:
    """An image in the pool."""

    image: CaptionedImage
    admitted: float
    """Time of the admission on the monotonic clock, in seconds."""


class InversionModule(LightningModule):
    """Inverts images as they arrive; each image is at its own timestep, and images share UNet calls."""

    networks: StableDiffusion
    pool: InversionPool[tuple[str, str]]

    def __init__(
        self,
        settings: InversionRunSettings,
        batch_size: int | Literal["auto"],
        stop: StopSignals,
        compile_backend: str | None = None,
    ) -> None:
        """Load no weights yet.

        Args:
            settings: Settings of the run.
            batch_size: Images in one UNet call; 'auto' measures the fastest size that fits.
            stop: Stop signals: no UNet call follows a request.
            compile_backend: Backend of `torch.compile` for the UNet; None does not compile it.
        """
        super().__init__()
        self.settings = settings
        self.batch_size = batch_size
        self.stop = stop
        self.compile_backend = compile_backend
        self._in_flight: dict[tuple[str, str], InFlight] = {}

    def setup(self, stage: str) -> None:
        """Load the networks, once."""
        if not hasattr(self, "networks"):
            self.networks = load_networks(self.settings.source, self.settings.precision)
            if self.compile_backend:
                self.networks.unet.compile(backend=self.compile_backend)

    def on_predict_start(self) -> None:
        """Open the pool."""
        if torch.is_inference_mode_enabled():
            raise ValueError(NEEDS_GRADIENTS)
        # what is loaded by now stays until the end: the garbage collector need not walk it
        gc.collect()
        gc.freeze()
        self.open_pool()

    def open_pool(self) -> None:
        """Start with an empty pool."""
        self._in_flight.clear()
        self.pool = InversionPool(
            partial(self.networks.predict, optimize_pooled=self.settings.optimize_pooled),
            self.networks.schedule(self.settings.num_steps),
            self.settings.inversion,
            self.networks.embed_prompts([""])[0],
            1 if self.batch_size == "auto" else self.batch_size,
            self.settings.storage,
        )

    def predict_step(self, batch: CaptionedImage | Failure | EndOfUnit, batch_idx: int) -> list[Outcome]:
        """Admit one image; return what finishes until there is room for the next one, or all at the end."""
        outcomes: list[Outcome] = []
        if isinstance(batch, CaptionedImage):
            self.admit(batch)
        else:
            outcomes.append(batch)
        is_last: bool = self.trainer.predict_loop.batch_progress.is_last_batch  # type: ignore[attr-defined]
        advance = self.pool.finish if is_last else self.pool.make_room
        outcomes += [self.finish(key, state) for key, state in advance(lambda: self.stop.requested)]
        return outcomes

    def admit(self, image: CaptionedImage) -> None:
        """Put an image into the pool."""
        key = (image.unit.shard, image.key)
        self._in_flight[key] = InFlight(image, time.monotonic())
        latents = self.networks.encode_images(image.pixels[None])[0]
        prompt = self.networks.embed_prompts([image.prompt])[0]
        if self.batch_size == "auto":
            self.batch_size = find_batch_size(
                self.networks.predict, latents, self.pool.schedule.network_timesteps[1], prompt
            )
            self.pool.batch_size = self.batch_size
            logger.warning("model.batch_size: %d images in one call are the fastest on this device", self.batch_size)
        self.pool.admit(key, latents, prompt, image_seed(self.settings.inversion.noise_seed, image.pixels))

    def finish(self, key: tuple[str, str], state: InversionState) -> Outcome:
        """Decode the reconstruction and the VAE round trip, and compare both with the input."""
        in_flight = self._in_flight.pop(key)
        image = in_flight.image
        if state.error:
            return Failure(image.unit, image.key, "inversion", state.error, input_sha256=image.input_sha256)
        images = self.networks.decode_latents(torch.stack([state.current_latents, state.trajectory[0]]))
        reached, round_trip = psnr(images, (image.pixels.to(images.device) / 255)[None]).tolist()
        if not (isfinite(reached) and isfinite(round_trip)):
            error = f"the PSNR is {reached}, and {round_trip} for the VAE's round trip: an image is not finite"
            return Failure(image.unit, image.key, "reconstruction", error, input_sha256=image.input_sha256)
        return Inversion(
            unit=image.unit,
            key=image.key,
            prompt=image.prompt,
            prompt_truncated=self.networks.truncates(image.prompt),
            height=image.pixels.shape[1],
            width=image.pixels.shape[2],
            noise_latents=state.trajectory[-1].cpu(),
            start_embedding=state.start_embedding.cpu(),
            null_embeddings=torch.stack(state.null_embeddings).cpu(),
            pivot=torch.stack(state.pivot).cpu() if state.pivot else None,
            timesteps=self.pool.schedule.network_timesteps[1:].flip(0).tolist(),
            inner_steps=state.inner_steps,
            losses=state.losses,
            psnr=reached,
            psnr_vae=round_trip,
            forwards=state.forwards,
            backwards=state.backwards,
            seconds=time.monotonic() - in_flight.admitted,
            input_sha256=image.input_sha256,
            pooled_dim=self.networks.text.pooled_dim,
        )
