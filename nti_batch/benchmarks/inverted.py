"""What a loop finds for one image, and how good it is."""

from dataclasses import dataclass

from torch import Tensor

from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import CaptionedImage
from nti_batch.scores.metrics import psnr


@dataclass(frozen=True, slots=True, eq=False)
class Inverted:
    """What a loop found for one image, and the UNet work that it cost."""

    noise_latents: Tensor
    """z_T, [channels, height, width]."""

    latents: Tensor
    """z_0, in the same shape."""

    start_embedding: Tensor
    """What null_T started from, [tokens, dim]."""

    null_embeddings: Tensor
    """[T, tokens, dim]."""

    pivot: Tensor | None
    """Of direct inversion, [T, channels, height, width]."""

    forwards: int
    backwards: int
    stored_bytes: int
    """Size of the tensors in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The figures of one image."""

    forwards: int
    backwards: int
    stored_bytes: int
    psnr: float
    psnr_vae: float
    """Of the VAE's round trip: what no inversion can exceed by much."""

    distance: float
    """Norm of an embedding's change from the one of the empty prompt, mean of the timesteps."""

    @property
    def gap(self) -> float:
        """Distance to the VAE's PSNR, in dB."""
        return self.psnr_vae - self.psnr


def score(networks: StableDiffusion, image: CaptionedImage, found: Inverted) -> Score:
    """Compare what was reached with the input."""
    pixels = image.pixels.to(networks.device)[None] / 255
    round_trip = networks.decode_latents(networks.encode_pictures(image.pixels[None]))
    empty = networks.embed_prompts([""])[0]
    return Score(
        forwards=found.forwards,
        backwards=found.backwards,
        stored_bytes=found.stored_bytes,
        psnr=psnr(networks.decode_latents(found.latents[None]), pixels).item(),
        psnr_vae=psnr(round_trip, pixels).item(),
        distance=(found.null_embeddings - empty).norm(dim=(1, 2)).mean().item(),
    )
