"""The LightningModule of the main job: feeds decoded images to the pool and hands back what it finishes."""

import dataclasses
import gc
import logging
import time
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule

from nti_batch.diffusion.batch_size import find_batch_size
from nti_batch.diffusion.null_text import InversionState
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import CaptionedImage, EndOfUnit, Failure, Inversion, Outcome
from nti_batch.scores.metrics import psnr

logger = logging.getLogger(__name__)
NEEDS_GRADIENTS = "null-text inversion needs gradients: set --trainer.inference_mode=false"


@dataclass(frozen=True, slots=True, eq=False)
class InFlight:
    """An image in the pool, and since when."""

    image: CaptionedImage
    admitted: float


class InversionModule(LightningModule):
    """Inverts images as they stream in; each is at its own timestep, and they share UNet calls."""

    networks: StableDiffusion
    pool: InversionPool[tuple[str, str]]

    def __init__(
        self,
        name: str = "demo",
        revision: str | None = None,
        variant: str | None = None,
        config: str | None = None,
        precision: Precision = "float32",
        num_steps: int = 50,
        batch_size: int | Literal["auto"] = 8,
        compile: str | None = None,
        optimize_pooled: bool = False,
        **null_text: Any,
    ) -> None:
        """Settings of the model and of the method; no weights are loaded yet.

        Args:
            name: A folder in diffusers' layout, a hub id such as 'user/model', a single .safetensors file in Stable
                Diffusion's original layout, or 'demo' for the embedded model.
            revision: Branch, tag or commit on the hub.
            variant: Variant of the weights, such as 'fp16'.
            config: Folder or hub id with the JSON files and tokenizers that a single .safetensors file lacks.
            precision: Of the UNet; latents, embeddings and losses are float32 always.
            num_steps: DDIM steps, T.
            batch_size: Images in one UNet call; 'auto' measures what is fastest and fits.
            compile: Backend of `torch.compile` for the UNet, such as 'inductor'; null leaves the UNet as it is.
            optimize_pooled: Whether null-text moves Stable Diffusion XL's pooled embedding, too; other families have
                none.
            **null_text: The fields of `InversionSettings`.
        """
        super().__init__()
        self.source = ModelSource(name, revision, variant, config)
        self.precision: Precision = precision
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.compile_backend = compile
        self.optimize_pooled = optimize_pooled
        if batch_size != "auto" and batch_size < 1:
            raise ValueError(f"model.batch_size is {batch_size}, allowed: at least 1, or 'auto'")
        if not 1 <= num_steps <= 999:
            raise ValueError(f"model.num_steps is {num_steps}, allowed: 1 to 999")
        self.null_text = InversionSettings(**null_text)
        self.storage: Storage = "float32"
        """How the output will store embeddings; it decides."""

        self.stop = StopSignals()
        self._flights: dict[tuple[str, str], InFlight] = {}

    @property
    def result_settings(self) -> dict[str, str | int | float | None]:
        """The settings that change results, for `run.json`."""
        source = {f"model.{key}": value for key, value in dataclasses.asdict(self.source).items()}
        method = {f"model.{key}": value for key, value in dataclasses.asdict(self.null_text).items()}
        own = {name: getattr(self, name) for name in ("precision", "num_steps", "optimize_pooled")}
        return {**source, **{f"model.{name}": value for name, value in own.items()}, **method}

    def setup(self, stage: str) -> None:
        """Load the networks, once."""
        if not hasattr(self, "networks"):
            self.networks = StableDiffusion.load(self.source, self.precision)
            if self.compile_backend:
                self.networks.unet.compile(backend=self.compile_backend)

    def on_predict_start(self) -> None:
        """Open the pool, and mind the signals."""
        if torch.is_inference_mode_enabled():
            raise ValueError(NEEDS_GRADIENTS)
        self.stop.take_all()
        # what is loaded by now stays to the end: the garbage collector need not walk it again and again
        gc.collect()
        gc.freeze()
        self.pool = InversionPool(
            partial(self.networks.predict, optimize_pooled=self.optimize_pooled),
            self.networks.schedule(self.num_steps),
            self.null_text,
            self.networks.embed_prompts([""])[0],
            1 if self.batch_size == "auto" else self.batch_size,
            self.storage,
        )

    def predict_step(self, batch: CaptionedImage | Failure | EndOfUnit, batch_idx: int) -> list[Outcome]:
        """Take one image in; return what is finished by the time there is room for the next, or all at the end."""
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
        self._flights[key] = InFlight(image, time.monotonic())
        latents = self.networks.encode_images(image.pixels[None])[0]
        prompt = self.networks.embed_prompts([image.prompt])[0]
        if self.batch_size == "auto":
            self.batch_size = find_batch_size(
                self.networks.predict, latents, self.pool.schedule.network_timesteps[1], prompt
            )
            self.pool.batch_size = self.batch_size
            logger.warning("model.batch_size: %d images in one call are the fastest here", self.batch_size)
        self.pool.admit(key, latents, prompt)

    def _conclude(self, key: tuple[str, str], state: InversionState) -> Outcome:
        """Decode what the job arrived at, and what it could have arrived at, and compare with the input."""
        flight = self._flights.pop(key)
        image = flight.image
        if state.error:
            return Failure(image.unit, image.key, "inversion", state.error)
        pictures = self.networks.decode_latents(torch.stack([state.current_latents, state.trajectory[0]]))
        reached, round_trip = psnr(pictures, (image.pixels.to(pictures.device) / 255)[None]).tolist()
        if not (isfinite(reached) and isfinite(round_trip)):
            error = f"the PSNR is {reached}, and {round_trip} for the VAE's round trip: a picture is not finite"
            return Failure(image.unit, image.key, "reconstruction", error)
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
            seconds=time.monotonic() - flight.admitted,
            pooled_dim=self.networks.text.pooled_dim,
        )
