"""The LightningModule of the inversion job: admits images to the pool and returns finished inversions."""

import gc
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nti_batch.data.images import to_bytes
from nti_batch.diffusion.batch_size import find_batch_size, in_batches
from nti_batch.diffusion.ddpm import image_seed
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.host import HostCopy
from nti_batch.diffusion.null_text import InvertedImage
from nti_batch.diffusion.pool import InversionPool
from nti_batch.editing.inverter import compare_with_input, failure, finished_inversion
from nti_batch.jobs.job_module import JobModule
from nti_batch.jobs.networks import load_networks, warm_up
from nti_batch.jobs.prompt_cache import PromptCache
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.acceleration import Acceleration
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import CaptionedImage, EndOfUnit, Failure, Outcome, Pause
from nti_batch.settings import InversionRunSettings

logger = logging.getLogger(__name__)
NEEDS_GRADIENTS = "null-text inversion needs gradients: set --trainer.inference_mode=false"


VAE_BATCH_SIZE = 8
"""Most images in one call of the VAE; a call of one image takes 1.5 times as long for each."""

DECODING_DELAY = 5.0
"""Longest time, in seconds, for which a finished image waits for others to be decoded with it."""


@dataclass(frozen=True, slots=True, eq=False)
class InFlight:
    """An image in the pool."""

    image: CaptionedImage
    admitted: float
    """Time of the admission on the monotonic clock, in seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """An image that has left the pool, and is not decoded yet."""

    image: CaptionedImage
    inverted: InvertedImage
    seconds: float
    """Seconds in the pool."""

    since: float
    """Time at which it left the pool, on the monotonic clock, in seconds."""


class InversionModule(JobModule):
    """Inverts images as they arrive; each image is at its own timestep, and images share UNet calls.

    An image is encoded with others that have arrived, waits for room in the pool, is inverted there, and is decoded
    with others that have finished.
    """

    networks: StableDiffusion
    pool: InversionPool[tuple[str, str]]
    pool_type: Callable[..., InversionPool[tuple[str, str]]] = InversionPool

    def __init__(
        self,
        settings: InversionRunSettings,
        batch_size: int | Literal["auto"],
        stop: StopSignals,
        emit: Callable[[Outcome], None],
        acceleration: Acceleration,
    ) -> None:
        """Load no weights yet.

        Args:
            settings: Settings of the run.
            batch_size: Images in one UNet call; 'auto' measures the fastest size that fits.
            stop: Stop signals: no UNet call follows a request.
            emit: Takes each outcome as soon as there is one.
            acceleration: Ways to make the UNet's calls faster.
        """
        super().__init__()
        self.settings = settings
        self.batch_size = batch_size
        self.stop = stop
        self.emit = emit
        self.acceleration = acceleration
        self._arrived: list[CaptionedImage] = []
        """Images that are not encoded yet."""

        self._encoded: deque[tuple[CaptionedImage, Tensor, Tensor]] = deque()
        """Images with their latents and prompt embeddings, which wait for room in the pool."""

        self._in_flight: dict[tuple[str, str], InFlight] = {}
        self._finished: list[Finished] = []
        self._compared: deque[tuple[list[Finished], HostCopy]] = deque()
        """Decoded images with their PSNR and that of the VAE round trip, which are on their way to the host."""

    def setup(self, stage: str) -> None:
        """Load the networks, once."""
        if not hasattr(self, "networks"):
            self.networks = load_networks(self.settings.source, self.settings.precision)

    def on_predict_start(self) -> None:
        """Open the pool."""
        if torch.is_inference_mode_enabled():
            raise ValueError(NEEDS_GRADIENTS)
        # what is loaded by now stays until the end: the garbage collector need not walk it
        gc.collect()
        gc.freeze()
        self._embed = PromptCache(self.networks.embed_prompts)
        schedule = self.networks.schedule(self.settings.num_steps)
        self._timesteps: list[int] = schedule.network_timesteps[1:].flip(0).tolist()
        self.pool = self.pool_type(
            self.predictor(),
            schedule,
            self.settings.inversion,
            self._embed([""])[0],
            1 if self.batch_size == "auto" else self.batch_size,
            self.settings.storage,
        )
        self.start_clocks(invert=self.pool.clock)

    def queue_lengths(self) -> dict[str, int]:
        """Images that wait for the encoder, for the pool and for the decoder, and those in the pool."""
        return {
            "encode": len(self._arrived),
            "admit": len(self._encoded),
            "pool": len(self._in_flight),
            "decode": len(self._finished),
        }

    def predictor(self) -> Predictor:
        """The network as the pool calls it."""
        return self.acceleration.predictor(self.networks, lambda: self.pool.batch_size, self.settings.optimize_pooled)

    def predict_step(self, batch: CaptionedImage | Failure | EndOfUnit | Pause, batch_idx: int) -> int:
        """Take in one image, and advance the pool until there is room for the next one, or to the end of all.

        Returns:
            Number of images in the pool.
        """
        if isinstance(batch, CaptionedImage):
            self._arrived.append(batch)
        elif not isinstance(batch, Pause):
            self.emit(batch)
        is_last: bool = self.trainer.predict_loop.batch_progress.is_last_batch  # type: ignore[attr-defined]
        is_last = is_last or isinstance(batch, Pause)
        if len(self._arrived) >= self._vae_batch_size or (is_last and self._arrived):
            self._encode()
        self._admit()
        while (len(self.pool) >= self.pool.capacity or (is_last and len(self.pool))) and not self.stop.requested:
            self._advance()
            self._admit()
        # while the pool fills, the device does not wait for the images that are still to come
        if self.pool.has_full_call and not self.stop.requested:
            self._advance()
        if isinstance(batch, Pause):
            self.on_predict_epoch_end()
        return len(self.pool)

    def on_predict_epoch_end(self) -> None:
        """Decode and emit what is finished, at a pause, at the end of the input or after a request to stop."""
        self._decode()
        while self._compared:
            self._emit_compared()

    @property
    def _vae_batch_size(self) -> int:
        """Images in one call of the VAE: no more than the UNet has, whose memory is known to suffice."""
        return min(VAE_BATCH_SIZE, self.pool.batch_size)

    def _encode(self) -> None:
        """Encode the images that have arrived, and their prompts."""
        images, self._arrived = self._arrived, []
        pixels = torch.stack([image.pixels for image in images])
        with self.clock("encode").running():
            latents = self._with_space(lambda: in_batches(self.networks.encode_images, pixels, self._vae_batch_size))
            prompts = self._embed([image.prompt for image in images])
        if self.warm_up_seconds is None:
            self._warm_up(latents[0], prompts[0])
        self._encoded.extend(zip(images, latents, prompts, strict=True))

    def _warm_up(self, latents: Tensor, prompt: Tensor) -> None:
        """Find the batch size, then compile the UNet for it; the VAE's calls must fit, too."""
        timestep = self.pool.schedule.network_timesteps[1]
        use_vae = partial(self._use_vae, latents)
        if self.batch_size == "auto":
            self.batch_size = self.pool.batch_size = find_batch_size(
                self.networks.predict, latents, timestep, prompt, use_vae
            )
            logger.warning("model.batch_size: %d images in one call are the fastest on this device", self.batch_size)
        start = time.monotonic()
        if self.acceleration.is_on:
            warm_up(self.pool, self.networks.predict, (latents, timestep, prompt), use_vae)
            logger.warning(
                "the UNet is compiled for %d images in one call, which took %.0f s",
                self.pool.batch_size,
                time.monotonic() - start,
            )
        self.warm_up_seconds = time.monotonic() - start

    def _use_vae(self, latents: Tensor, images: int) -> None:
        """Make the VAE's calls of a batch size, with copies of one image."""
        rows = latents.repeat(min(VAE_BATCH_SIZE, images), 1, 1, 1)
        pixels = to_bytes(in_batches(self.networks.decode_latents, rows, len(rows)))
        in_batches(self.networks.encode_images, pixels.cpu(), len(rows))

    def _with_space(self, call: Callable[[], Tensor]) -> Tensor:
        """Make a call of the VAE; if it does not fit the memory, once more without UNet calls on their way."""
        try:
            return call()
        except torch.OutOfMemoryError:
            if not self.pool.make_space():
                raise
        return call()

    def _admit(self) -> None:
        """Admit encoded images to the pool while it has room."""
        while self._encoded and len(self.pool) < self.pool.capacity:
            image, latents, prompt = self._encoded.popleft()
            key = (image.unit.shard, image.key)
            self._in_flight[key] = InFlight(image, time.monotonic())
            self.pool.admit(key, latents, prompt, image_seed(self.settings.inversion.noise_seed, image.pixels))

    def _advance(self) -> None:
        """Make one UNet call, decode finished images in full batches or before they have waited long, and emit them."""
        started = time.monotonic()
        inverted_images = self.pool.advance()
        now = time.monotonic()
        for key, inverted in inverted_images:
            in_flight = self._in_flight.pop(key)
            self._finished.append(Finished(in_flight.image, inverted, now - in_flight.admitted, now))
        # each is decoded twice, and the next call takes as long as this one
        is_full = 2 * len(self._finished) >= self._vae_batch_size
        if is_full or (self._finished and 2 * now - started - self._finished[0].since > DECODING_DELAY):
            self._decode()
        while self._compared and self._compared[0][1].has_arrived:
            self._emit_compared()

    def _decode(self) -> None:
        """Decode each finished image's reconstruction and its VAE round trip, and compare both with the input."""
        finished, self._finished = self._finished, []
        for each in finished:
            if each.inverted.error:
                self.emit(failure(each.image, "inversion", each.inverted.error))
        solved = [each for each in finished if not each.inverted.error]
        # each is decoded twice
        size = max(1, self._vae_batch_size // 2)
        for group in (solved[i : i + size] for i in range(0, len(solved), size)):
            self._compare(group)

    def _compare(self, group: list[Finished]) -> None:
        """Decode a few images, and compare them with the input; nothing waits for the device."""
        images = [(each.image, each.inverted) for each in group]
        with self.clock("decode").running():
            scores = self._with_space(lambda: compare_with_input(self.networks, images, self._vae_batch_size))
            # the writer's thread must not call the device: that would end the capture of a CUDA graph
            group = [replace(each, inverted=each.inverted.on_host()) for each in group]
        self._compared.append((group, self.pool.to_host(scores)))

    def _emit_compared(self) -> None:
        """Emit the inversions that were compared first."""
        group, scores = self._compared.popleft()
        for each, *psnrs in zip(group, *scores.tolist(), strict=True):
            self.emit(
                finished_inversion(self.networks, self._timesteps, each.image, each.inverted, psnrs, each.seconds)
            )
