"""Stages of the training: batches and losses of the VAE, and of the UNet with the text encoder."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from nti_batch.demo.attention import AttentionRecorder
from nti_batch.demo.captions import CaptionRates
from nti_batch.demo.networks import LATENT_SIZE, make_scheduler
from nti_batch.demo.shapes import SIZE
from nti_batch.demo.training_data import Captions, textures, word_targets
from nti_batch.demo.training_loop import Batch, Stage


@dataclass(frozen=True, slots=True)
class VaeRecipe:
    """Settings of the training of the VAE."""

    steps: int = 4_000
    batch: int = 16
    learning_rate: float = 1e-3
    kl_weight: float = 1e-7
    texture_share: float = 0.25
    composite_share: float = 0.5
    """Share of the images whose latents are put together from two images."""


@dataclass(frozen=True, slots=True)
class UNetRecipe:
    """Settings of the training of the UNet and the text encoder."""

    captions_per_scene: int = 4
    caption_rates: CaptionRates = field(default_factory=CaptionRates)
    batch: int = 64
    steps: int = 7_800
    learning_rate: float = 1.2e-3
    decay_share: float = 0.4
    """Share of the steps, at the end, in which the learning rate falls."""

    average_decay: float = 0.999
    latent_noise: float = 0.1
    prompt_dropout: float = 0.1
    noisy_share: float = 0.4
    """Share of the timesteps that are drawn from 500 to 999; the others are drawn from all."""

    grounding_weight: float = 0.05
    noisy_grounding: float = 3.0
    """Factor of the grounding loss above timestep 700."""

    embedding_scale: float = 0.25


def falling_cosine(progress: float) -> float:
    """Learning rate as a share of its maximum, for a share of the steps; it falls from the first step."""
    return 0.5 + 0.5 * math.cos(math.pi * progress)


def vae_stage(vae: AutoencoderKL, images: Tensor, recipe: VaeRecipe, seed: int) -> Stage:
    """Train on the squared error of pixels, with a small KL loss that pulls the latents towards a unit Gaussian.

    Some latents are those of one image within a rectangle, and those of another image outside. The decoder must then
    show both: so it learns that a part of an image depends on its own latents. Local blend, which puts latents of two
    images together, relies on that.

    Args:
        vae: VAE to train.
        images: Drawn scenes, [scenes, 3, 64, 64] uint8.
        recipe: Settings of the training.
        seed: Seed of the batches.
    """
    num_textures = round(recipe.batch * recipe.texture_share)

    def make_batch(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(images), (recipe.batch - num_textures,), generator=generator)
        batch = torch.cat([images[rows] / 127.5 - 1, textures(num_textures, generator)])
        inside = random_rectangles(recipe.batch, generator)
        composite = torch.rand(recipe.batch, 1, 1, 1, generator=generator) < recipe.composite_share
        return {
            "images": batch[torch.randperm(recipe.batch, generator=generator)],
            "inside": inside & composite,
            "noise": torch.randn(recipe.batch, 4, LATENT_SIZE, LATENT_SIZE, generator=generator),
        }

    def losses(batch: Batch) -> dict[str, Tensor]:
        images, inside = batch["images"], batch["inside"]
        posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * batch["noise"]
        latents = torch.where(inside, latents.roll(1, 0), latents)
        wide = inside.repeat_interleave(SIZE // LATENT_SIZE, 2).repeat_interleave(SIZE // LATENT_SIZE, 3)
        target = torch.where(wide, images.roll(1, 0), images)
        error = F.mse_loss(vae.decode(latents).sample, target)
        return {"mse": error, "kl": recipe.kl_weight * posterior.kl().mean()}

    return Stage("VAE", vae, make_batch, losses, recipe.steps, recipe.learning_rate, falling_cosine, 0.0, seed)


def random_rectangles(count: int, generator: torch.Generator) -> Tensor:
    """Choose a rectangle of latent pixels for each image, bool [count, 1, 16, 16]."""
    corners = torch.randint(LATENT_SIZE + 1, (2, 2, count), generator=generator).sort(0).values
    (top, left), (bottom, right) = corners[..., None]
    axis = torch.arange(LATENT_SIZE)
    rows, columns = (axis >= top) & (axis < bottom), (axis >= left) & (axis < right)
    inside: Tensor = rows[:, None, :, None] & columns[:, None, None, :]
    return inside


def grounding_loss(recorders: list[AttentionRecorder], targets: Tensor) -> Tensor:
    """Compute the cross-entropy of the attention over the tokens against the target words, [batch].

    Args:
        recorders: Attention of the finest layers.
        targets: Output of `word_targets` for the batch.
    """
    log_maps = torch.stack([r.attention_map for r in recorders]).clamp(min=1e-6).log().mean(0)
    return -(targets * log_maps).sum(-1).mean(-1)


def loss_weights(alphas_cumprod: Tensor) -> Tensor:
    """Compute the weight of each timestep's loss, w1 + w2 with each divided by its mean.

        w1 = 1 / sqrt(snr + 0.05)
        w2 = 1 / (snr + 0.02)

    At 16 x 16 latents, signal-to-noise ratios of 0.01 to 0.3 decide the place and shape of an object. There, the
    unweighted loss is a hundredth of the loss on clean images. w1 lets the captions decide these. w2, which is nearly
    the loss on x_0, lets them decide which colour belongs to which of two objects: that is settled at the noisiest
    timesteps, where w1 alone leaves the caption with next to no say.
    Choi et al., "Perception Prioritized Training of Diffusion Models", 2022, https://arxiv.org/abs/2204.00227.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    w1, w2 = 1 / (snr + 0.05).sqrt(), 1 / (snr + 0.02)
    return w1 / w1.mean() + w2 / w2.mean()


@dataclass(frozen=True, slots=True, eq=False)
class EncodedScenes:
    """Inputs of the UNet and the text encoder for drawn scenes."""

    latents: Tensor
    """Scaled latents, [scenes, 4, 16, 16]."""

    captions: Captions
    empty_tokens: Tensor
    """Tokens of the empty prompt, [1, 77]."""

    masks: Tensor
    """Output of `region_masks`, [scenes, 3, 256]."""


def unet_stage(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    scenes: EncodedScenes,
    recorders: list[AttentionRecorder],
    recipe: UNetRecipe,
    seed: int,
) -> Stage:
    """Train on noise prediction with dropped prompts, and on grounding.

    Args:
        unet: UNet to train.
        text_encoder: Text encoder to train.
        scenes: Training data.
        recorders: Attention of the finest layers of the UNet.
        recipe: Settings of the training.
        seed: Seed of the batches.
    """
    scheduler, size = make_scheduler(), recipe.batch
    alphas = scheduler.alphas_cumprod
    weights = loss_weights(alphas)

    def make_batch(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(scenes.latents), (size,), generator=generator)
        which = torch.randint(scenes.captions.tokens.shape[1], (size,), generator=generator)
        captioned = torch.rand(size, generator=generator) >= recipe.prompt_dropout
        latents = scenes.latents[rows]
        noise, blur = torch.randn(2, *latents.shape, generator=generator)
        noisy = torch.rand(size, generator=generator) < recipe.noisy_share
        low = torch.where(noisy, 500, 0)
        timesteps = low + ((1000 - low) * torch.rand(size, generator=generator)).long()
        tokens = scenes.captions.tokens[rows, which].long()
        grounded = captioned * torch.where(timesteps > 700, recipe.noisy_grounding, 1.0)
        return {
            "tokens": torch.where(captioned[:, None], tokens, scenes.empty_tokens),
            "latents": scheduler.add_noise(latents + recipe.latent_noise * blur, noise, timesteps),
            "noise": noise,
            "timesteps": timesteps,
            "weights": weights[timesteps] / size,
            "masks": scenes.masks[rows],
            "regions": scenes.captions.regions[rows, which],
            "grounded": recipe.grounding_weight * grounded / captioned.sum().clamp(min=1),
        }

    def losses(batch: Batch) -> dict[str, Tensor]:
        embeddings = text_encoder(batch["tokens"]).last_hidden_state
        predicted = unet(batch["latents"], batch["timesteps"], embeddings).sample
        errors = (predicted - batch["noise"]).square().mean(dim=(1, 2, 3))
        grounding = grounding_loss(recorders, word_targets(batch["masks"], batch["regions"]))
        return {"mse": (batch["weights"] * errors).sum(), "grounding": (batch["grounded"] * grounding).sum()}

    def decay(progress: float) -> float:
        left = (1 - progress) / recipe.decay_share
        return falling_cosine(1 - left) if left < 1 else 1.0

    both = nn.ModuleList([unet, text_encoder])
    rate, average = recipe.learning_rate, recipe.average_decay
    return Stage("UNet", both, make_batch, losses, recipe.steps, rate, decay, average, seed)
