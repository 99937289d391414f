"""Edit-friendly DDPM inversion: a trajectory of independent noise, and steps that share its noise maps.

Huberman-Spiegelglas et al., "An Edit Friendly DDPM Noise Space: Inversion and Manipulations", 2023,
https://arxiv.org/abs/2304.06140. The trajectory needs no network:

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps_t          eps_1 ... eps_T independent, standard normal

The noise map z_t is what leads the source from x_t to x_{t-1}, and an edit's latents x*_t take it over:

    sigma_t z_t = x_{t-1} - mu_t(x_t)
    x*_{t-1}    = mu_t(x*_t) + sigma_t z_t

with the mean of a DDIM step whose eta is 1:

    mu_t(x)     = sqrt(abar_{t-1}) x_0(x) + sqrt(1 - abar_{t-1} - sigma_t^2) e(x)
    sigma_t^2   = (1 - abar_{t-1}) / (1 - abar_t) (1 - abar_t / abar_{t-1})

The trajectory is stored, so that z_t need not be: the source's row of a batch gives mu_t(x_t). The authors' code leaves
z_1 out; here it is kept, as in the paper, so that the source's own prompt gives the source.
"""

from hashlib import sha256

import torch
from torch import Tensor

from nti_batch.diffusion.ddim import all_at, ddim_step
from nti_batch.diffusion.rows import Rows
from nti_batch.diffusion.schedule import DDIMSchedule


def image_seed(noise_seed: int, pixels: Tensor) -> int:
    """The seed of an image's noise, which depends on the image alone and not on its name, batch or rank.

    Args:
        noise_seed: The seed of the run.
        pixels: The image, uint8 on the CPU.
    """
    digest = sha256(noise_seed.to_bytes(8, "little") + pixels.numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "little")


def noise_trajectory(schedule: DDIMSchedule, latents: Tensor, seed: int) -> list[Tensor]:
    """x_0 ... x_T of one image, each [channels, height, width], given x_0. The noise is the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(schedule.num_steps, *latents.shape, generator=generator).to(latents.device)
    abar = schedule.alphas_cumprod[1:, None, None, None]
    return [latents, *(abar.sqrt() * latents + (1 - abar).sqrt() * noise)]


def ddpm_mean(schedule: DDIMSchedule, latents: Tensor, prediction: Tensor, t: int) -> Tensor:
    """mu_t of images that are all at t.

    Args:
        schedule: The noise levels.
        latents: x_t, [batch, channels, height, width].
        prediction: The guided prediction, in the same shape.
        t: 1 ... T.
    """
    here, below = all_at(t, latents), all_at(t - 1, latents)
    abar_t, abar_below = schedule.alpha(here), schedule.alpha(below)
    variance = (1 - abar_below) / (1 - abar_t) * (1 - abar_t / abar_below)
    return ddim_step(schedule, latents, prediction, here, below, variance)


def add_noise_maps(means: Tensor, targets: Tensor, rows: Rows) -> Tensor:
    """x_{t-1} of all rows: the mean of each row and sigma_t z_t of its source.

    Args:
        means: mu_t, [rows, channels, height, width].
        targets: x_{t-1} of the sources, [images, channels, height, width].
        rows: Rows of the batch.
    """
    return targets[rows.image_of] + (means - means[rows.source_of])
