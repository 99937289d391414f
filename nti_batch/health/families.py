"""What a healthy model of a family shows, with the source of each number."""

from dataclasses import dataclass

from nti_batch.models.supported import ModelDescription

PAPER = "Mokady et al., CVPR 2023, figure 4"
BENCHMARK = "PnPInversion, ICLR 2024, table 1"
RULE = "rule of this check"


@dataclass(frozen=True, slots=True)
class Limit:
    """Limit of a healthy figure, and where it comes from."""

    value: float
    source: str = RULE


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Limits of the figures of a family of models, on the images of the check."""

    name: str
    draws_scenes: bool = False
    """Whether the images of the check are drawn scenes instead of photographs."""

    scaling_factor: float | None = None
    """Scaling factor of the family's VAE; None if each model has its own."""

    beta_end: float | None = None
    """Last beta of the family's schedule, which is `scaled_linear` from `BETA_START`; None if it is unknown."""

    least_psnr_vae: Limit = Limit(22.0, f"25.9 dB on photographs of COCO: {PAPER}")
    least_second_trip_gain: Limit = Limit(0.0)
    """Least PSNR of a second VAE round trip above that of the first, in dB."""

    latent_std: tuple[float, float] = (0.75, 1.3)
    most_unexplained: Limit = Limit(0.6)
    """Largest share of the noise that the UNet leaves unexplained."""

    least_caption_share: Limit = Limit(0.65)
    most_ddim_1_loss: Limit = Limit(8.0)
    """Largest PSNR of DDIM at guidance scale 1 below the VAE bound, in dB."""

    least_ddim_loss: Limit = Limit(2.0, f"13.6 dB of 25.9 dB: {PAPER}")
    """Least PSNR of DDIM at the full guidance scale below the VAE bound, in dB."""

    most_null_text_loss: Limit = Limit(1.5, f"0.2 dB after 500 updates: {PAPER}")
    """Largest PSNR of null-text inversion below the VAE bound, in dB."""

    least_unedited: Limit = Limit(20.0, f"27.03 dB on PIE-Bench: {BENCHMARK}")
    least_colour: Limit = Limit(0.25)


BETA_START = 0.00085

EMBEDDED = Family(
    name="the embedded model's",
    draws_scenes=True,
    beta_end=0.008,
    least_psnr_vae=Limit(31.5),
    least_second_trip_gain=Limit(2.0),
    most_unexplained=Limit(0.08),
    least_caption_share=Limit(0.8),
    most_ddim_1_loss=Limit(8.0),
    most_null_text_loss=Limit(2.5),
)
STABLE_DIFFUSION = "Stable Diffusion"
_BY_WIDTH = {768: f"{STABLE_DIFFUSION} 1.x", 1024: f"{STABLE_DIFFUSION} 2.x"}


def family_of(description: ModelDescription) -> Family:
    """Find the family of a model by the width of its embeddings and its size."""
    if description.is_xl and description.embedding_width == 2048:
        return Family(name=f"{STABLE_DIFFUSION} XL", scaling_factor=0.13025, beta_end=0.012)
    if (description.embedding_width, description.size) == (64, (64, 64)):
        return EMBEDDED
    if name := _BY_WIDTH.get(description.embedding_width):
        return Family(name=name, scaling_factor=0.18215, beta_end=0.012)
    return Family(name="unknown; the limits are Stable Diffusion's")
