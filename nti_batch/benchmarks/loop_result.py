"""The inversion of one image by a loop, and its figures."""

from dataclasses import dataclass

from torch import Tensor

from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import CaptionedImage
from nti_batch.scores.metrics import psnr


@dataclass(frozen=True, slots=True, eq=False)
class Inverted:
    """The inversion of one image, and the UNet evaluations that it took."""

    noise_latents: Tensor
    """z_T, [channels, height, width]."""

    latents: Tensor
    """z_0, in the same shape."""

    start_embedding: Tensor
    """Initial value of null_T, [tokens, dim]."""

    null_embeddings: Tensor
    """[T, tokens, dim]."""

    pivot: Tensor | None
    """Pivot, [T, channels, height, width]; None for a method that does not keep it."""

    forwards: int
    backwards: int
    stored_bytes: int
    """Size of the tensors in a file, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The figures of one image."""

    forwards: int
    backwards: int
    stored_bytes: int
    psnr: float
    psnr_vae: float
    """PSNR of the VAE's round trip: a bound that no inversion exceeds by much."""

    distance: float
    """L2 distance of null embeddings to the empty-prompt embedding, mean over the timesteps."""

    @property
    def psnr_below_bound(self) -> float:
        """PSNR below the VAE bound, in dB."""
        return self.psnr_vae - self.psnr


def score(networks: StableDiffusion, image: CaptionedImage, found: Inverted) -> Score:
    """Compare the reconstruction with the input."""
    pixels = image.pixels.to(networks.device)[None] / 255
    round_trip = networks.decode_latents(networks.encode_images(image.pixels[None]))
    empty = networks.embed_prompts([""])[0]
    return Score(
        forwards=found.forwards,
        backwards=found.backwards,
        stored_bytes=found.stored_bytes,
        psnr=psnr(networks.decode_latents(found.latents[None]), pixels).item(),
        psnr_vae=psnr(round_trip, pixels).item(),
        distance=(found.null_embeddings - empty).norm(dim=(1, 2)).mean().item(),
    )
