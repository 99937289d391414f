"""Trains the embedded model: `python -m nti_batch.demo.train OUT`.

The model is a Stable Diffusion in miniature, in a diffusers checkpoint folder. It learns from drawn scenes in three
stages:

1.  The VAE trains on scenes, and on random textures so that it also encodes camera images.
2.  The VAE encodes the scenes once.
3.  The UNet and the text encoder train together on noise prediction and *grounding*. Grounding teaches a pixel of the
    finest cross-attention layers to attend to the words of the object that is drawn there. Stable Diffusion learns
    this from captions of millions of images; a miniature needs the supervision.
    Wang et al., "TokenCompose: Text-to-Image Diffusion with Token-level Supervision", 2024,
    https://arxiv.org/abs/2312.03626.

The training is seeded. It takes 20 minutes to an hour on two cores.
`python -m nti_batch.demo.evaluate` measures the result.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel

from nti_batch.demo.attention import AttentionRecorder, record_finest_cross_attention
from nti_batch.demo.networks import make_scheduler, make_text_encoder, make_tokenizer, make_unet, make_vae
from nti_batch.demo.scenes import random_scene
from nti_batch.demo.training_data import EncodedScenes, draw_all, textures, word_targets


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of the training."""

    seed: int = 0
    num_scenes: int = 30_000
    vae_steps: int = 2_400
    vae_batch: int = 16
    vae_learning_rate: float = 2e-3
    kl_weight: float = 1e-7
    texture_share: float = 0.25
    unet_batch: int = 32
    unet_steps: int = 2_000
    unet_learning_rate: float = 1.2e-3
    latent_noise: float = 0.1
    unet_average_decay: float = 0.998
    prompt_dropout: float = 0.1
    grounding_weight: float = 0.01
    embedding_scale: float = 0.25


class Progress:
    """Prints a line every 15 seconds with stage, step, losses and remaining time."""

    def __init__(self, stage: str, steps: int) -> None:
        """Start the clock.

        Args:
            stage: Name of the stage.
            steps: Number of steps of the stage.
        """
        self.stage, self.steps, self.start, self.last = stage, steps, time.monotonic(), 0.0

    def __call__(self, step: int, **losses: Tensor) -> None:
        """Report a step, counted from 1, and its losses."""
        now = time.monotonic()
        if now - self.last < 15 and step < self.steps:
            return
        self.last = now
        left = (now - self.start) / step * (self.steps - step) / 60
        values = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
        print(f"{self.stage}: step {step} of {self.steps}, {values}, {left:.0f} min left", flush=True)


def cosine(progress: float) -> float:
    """Learning rate as a share of its maximum, for a share of the steps; it falls from the first step."""
    return 0.5 + 0.5 * math.cos(math.pi * progress)


def constant(progress: float) -> float:
    """Constant learning rate; the average of the weights replaces a decay."""
    return 1.0


def train_steps(
    parameters: list[nn.Parameter], rate: float, steps: int, decay: Callable[[float], float]
) -> Iterator[int]:
    """Yield 1 to `steps`, and update the parameters after each: AdamW with a warm-up and a decay."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 100) * decay(i / steps))
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        yield step
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


def train_vae(vae: AutoencoderKL, images: Tensor, recipe: Recipe) -> None:
    """Train on the squared error of pixels, with a small KL loss that pulls the latents towards a unit Gaussian."""
    generator = torch.Generator().manual_seed(recipe.seed)
    progress = Progress("VAE", recipe.vae_steps)
    num_textures = round(recipe.vae_batch * recipe.texture_share)
    for step in train_steps(list(vae.parameters()), recipe.vae_learning_rate, recipe.vae_steps, cosine):
        rows = torch.randint(len(images), (recipe.vae_batch - num_textures,), generator=generator)
        batch = torch.cat([images[rows] / 127.5 - 1, textures(num_textures, generator)])
        posterior = vae.encode(batch).latent_dist
        error = (vae.decode(posterior.sample(generator)).sample - batch).square().mean()
        (error + recipe.kl_weight * posterior.kl().mean()).backward()
        progress(step, mse=error.detach())


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Compute the posterior means before scaling, [images, 4, 16, 16]."""
    return torch.cat([vae.encode(batch / 127.5 - 1).latent_dist.mean for batch in images.split(64)])


def grounding_loss(recorders: list[AttentionRecorder], targets: Tensor, captioned: Tensor) -> Tensor:
    """Compute the cross-entropy of each pixel's attention over the tokens against its target words.

    Args:
        recorders: Attention of the finest layers.
        targets: Output of `word_targets` for the batch.
        captioned: Images whose prompt is not dropped, bool [batch].
    """
    log_maps = torch.stack([r.attention_map for r in recorders]).clamp(min=1e-6).log().mean(0)
    return -(targets * log_maps).sum(-1).mean(-1)[captioned].mean()


def loss_weights(alphas_cumprod: Tensor) -> Tensor:
    """Compute the weight of each timestep's loss, 1 / sqrt(snr + 0.05), divided by the mean weight.

    At 16 x 16 latents, signal-to-noise ratios of 0.01 to 0.3 decide the place and shape of an object. There, the
    unweighted loss is a hundredth of the loss on clean images.
    Choi et al., "Perception Prioritized Training of Diffusion Models", 2022, https://arxiv.org/abs/2204.00227.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = 1 / (snr + 0.05).sqrt()
    return weights / weights.mean()


def train_unet(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scenes: EncodedScenes, recipe: Recipe
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train on noise prediction with dropped prompts, and on grounding.

    Args:
        unet: UNet to train.
        text_encoder: Text encoder to train.
        scenes: Training data.
        recipe: Settings of the training.

    Returns:
        Both networks with their averaged weights.
    """
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    scheduler = make_scheduler()
    weights = loss_weights(scheduler.alphas_cumprod)
    both = nn.ModuleList([unet, text_encoder])
    average = AveragedModel(both, multi_avg_fn=get_ema_multi_avg_fn(recipe.unet_average_decay))
    progress = Progress("UNet", recipe.unet_steps)
    with record_finest_cross_attention(unet) as recorders:
        for step in train_steps(list(both.parameters()), recipe.unet_learning_rate, recipe.unet_steps, constant):
            average.update_parameters(both)
            rows = torch.randint(len(scenes.latents), (recipe.unet_batch,), generator=generator)
            captioned = torch.rand(recipe.unet_batch, generator=generator) >= recipe.prompt_dropout
            prompt = torch.where(captioned[:, None], scenes.tokens[rows], scenes.empty_tokens)
            latents = scenes.latents[rows]
            noise, blur = torch.randn(2, *latents.shape, generator=generator)
            timesteps = torch.randint(1000, (recipe.unet_batch,), generator=generator)
            noisy = scheduler.add_noise(latents + recipe.latent_noise * blur, noise, timesteps)
            predicted = unet(noisy, timesteps, text_encoder(prompt).last_hidden_state).sample
            errors = (predicted - noise).square().mean(dim=(1, 2, 3))
            error = (errors * weights[timesteps]).mean()
            grounding = grounding_loss(recorders, scenes.targets[rows].float(), captioned)
            (error + recipe.grounding_weight * grounding).backward()
            progress(step, mse=error.detach(), grounding=grounding.detach())
    both.load_state_dict(average.module.state_dict())
    return unet, text_encoder


@torch.no_grad()
def rescale_embeddings(text_encoder: CLIPTextModel, unet: UNet2DConditionModel, scale: float) -> None:
    """Multiply the text embeddings by `scale`, and divide the weights that read them by it; the outputs stay the same.

    Adam changes every value of an embedding by about its learning rate, so the L2 distance grows with the number of
    values. The paper's learning rate suits Stable Diffusion's 77 x 768 values; smaller embeddings give the 77 x 64
    values here a similar relative change.
    """
    text_encoder.final_layer_norm.weight.mul_(scale)
    text_encoder.final_layer_norm.bias.mul_(scale)
    for name, parameter in unet.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            parameter.div_(scale)


def train(out: Path, recipe: Recipe) -> None:
    """Run all three stages, and write the model folder with weights in half precision.

    Args:
        out: Folder of the model.
        recipe: Settings of the training.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    rng = random.Random(f"training-{recipe.seed}")
    # scenes of two objects are harder, since each word belongs to one of them: two thirds of the scenes have two
    scenes = [random_scene(rng, num_objects=rng.choice((1, 2, 2))) for _ in range(recipe.num_scenes)]
    images = draw_all(scenes)
    print(f"drew {len(scenes)} scenes", flush=True)

    torch.manual_seed(recipe.seed)
    vae = make_vae()
    train_vae(vae, images, recipe)
    latents = encode(vae, images)
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    vae.half()

    tokenizer = make_tokenizer()
    tokens = tokenizer([s.caption for s in scenes], padding="max_length", return_tensors="pt").input_ids
    empty_tokens = tokenizer("", padding="max_length", return_tensors="pt").input_ids
    targets = word_targets(scenes).half()
    torch.manual_seed(recipe.seed)
    text_encoder = make_text_encoder(tokenizer)
    unet = make_unet(text_encoder.config.hidden_size)
    train_unet(unet, text_encoder, EncodedScenes(latents / latents.std(), tokens, empty_tokens, targets), recipe)
    rescale_embeddings(text_encoder, unet, recipe.embedding_scale)
    parts = vae, text_encoder.half(), tokenizer, unet.half(), make_scheduler()
    StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m nti_batch.demo.train", description="Train the embedded model.")
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder of the model")
    train(parser.parse_args().out, Recipe())
