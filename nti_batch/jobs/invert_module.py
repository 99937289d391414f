"""The LightningModule of the inversion job: admits images to the pool and returns finished inversions."""

import gc
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from lightning.pytorch import LightningModule

from nti_batch.diffusion.batch_size import find_batch_size
from nti_batch.diffusion.ddpm import image_seed
from nti_batch.diffusion.null_text import InversionState
from nti_batch.diffusion.pool import InversionPool
from nti_batch.editing.inverter import finished_inversion
from nti_batch.jobs.networks import load_networks
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import CaptionedImage, EndOfUnit, Failure, Outcome
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
            self._admit(batch)
        else:
            outcomes.append(batch)
        is_last: bool = self.trainer.predict_loop.batch_progress.is_last_batch  # type: ignore[attr-defined]
        advance = self.pool.finish if is_last else self.pool.make_room
        outcomes += [self._conclude(key, state) for key, state in advance(lambda: self.stop.requested)]
        return outcomes

    def _admit(self, image: CaptionedImage) -> None:
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

    def _conclude(self, key: tuple[str, str], state: InversionState) -> Outcome:
        in_flight = self._in_flight.pop(key)
        seconds = time.monotonic() - in_flight.admitted
        return finished_inversion(self.networks, self.pool.schedule, in_flight.image, state, seconds)
