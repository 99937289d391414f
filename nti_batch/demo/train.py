"""Train the embedded model: `python -m nti_batch.demo.train OUT`.

A Stable Diffusion in miniature, in diffusers' folder format, learnt from drawn scenes in three stages:

1.  the VAE, on scenes and on random textures (so that photographs survive it, too);
2.  the scenes' latents, encoded once;
3.  the UNet and the text encoder together, on noise prediction plus *grounding*: in the finest
    cross-attention layers a pixel is told to look at the words of the thing that is drawn there.
    Real Stable Diffusion learns this from captions of millions of pictures; a miniature needs to be told.
    Wang et al., "TokenCompose: Text-to-Image Diffusion with Token-level Supervision", 2024,
    https://arxiv.org/abs/2312.03626.

Seeded; 20 minutes to an hour on two cores. `python -m nti_batch.demo.evaluate` measures the outcome.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nti_batch.data.images import to_bytes
from nti_batch.demo.attention import AttentionRecorder, record_finest_cross_attention
from nti_batch.demo.scenes import COLOURS, PLACES, SHAPES, SIZE, SIZES, Scene, draw, object_masks, random_scene

LATENT_SIZE = SIZE // 4
MAX_TOKENS = 77


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every number of the training."""

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


# --- the parts -----------------------------------------------------------------------------------


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with a vocabulary of all bytes and one token for each scene word."""
    words = [*COLOURS, *SHAPES, *SIZES, *PLACES, "a", "an", "on", "at", "in", "the", "and", "of", "background"]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=2_000, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(words * 10, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """One layer: a word's embedding stays its own, with what stands before it in the caption."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_vae() -> AutoencoderKL:
    """3 x 64 x 64 pixels to 4 x 16 x 16 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def make_unet(text_dim: int) -> UNet2DConditionModel:
    """Three resolutions, 16 x 16 to 4 x 4, with cross-attention at all of them."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        cross_attention_dim=text_dim,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule and settings."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


# --- the data ------------------------------------------------------------------------------------


def draw_all(scenes: list[Scene]) -> Tensor:
    """Pictures of all scenes, [scenes, 3, 64, 64] uint8 to save memory."""
    return torch.stack([to_bytes(draw(scene)) for scene in scenes])


def textures(count: int, generator: torch.Generator) -> Tensor:
    """Random colour pictures whose detail falls off with frequency, as in photographs, in [-1, 1]."""
    picture = torch.zeros(count, 3, SIZE, SIZE)
    for size in (2, 4, 8, 16, 32):
        detail = torch.randn(count, 3, size, size, generator=generator) * 0.9 * size**-0.5
        picture += F.interpolate(detail, SIZE, mode="bilinear")
    grey = picture.mean(1, keepdim=True)
    return torch.lerp(grey, picture, torch.rand(count, 1, 1, 1, generator=generator)).clamp(-1, 1)


def word_targets(scenes: list[Scene]) -> Tensor:
    """For each latent pixel, the tokens that tell what is drawn there, [scenes, 256, 77]; rows sum to 1.

    Every scene word is one token, so word i of a caption is token i + 1.
    """
    targets = torch.zeros(len(scenes), LATENT_SIZE**2, MAX_TOKENS)
    for target, scene in zip(targets, scenes, strict=True):
        words = scene.caption.split()
        masks = F.avg_pool2d(object_masks(scene), SIZE // LATENT_SIZE).flatten(1)
        for mask, thing in zip(masks, scene.objects, strict=True):
            colour = words.index(thing.colour) + 1
            target[:, [colour, colour + 1]] = mask[:, None] / 2
        background = (1 - masks.sum(0)).clamp(min=0)[:, None]
        target[:, [len(words) - 1, len(words)]] = background / 2
    return targets


# --- training ------------------------------------------------------------------------------------


class Progress:
    """One line every few seconds: stage, step, losses, time left."""

    def __init__(self, stage: str, steps: int) -> None:
        """Start the clock."""
        self.stage, self.steps, self.start, self.last = stage, steps, time.monotonic(), 0.0

    def __call__(self, step: int, **losses: Tensor) -> None:
        """Report step `step` of `steps`, counted from 1."""
        now = time.monotonic()
        if now - self.last < 15 and step < self.steps:
            return
        self.last = now
        left = (now - self.start) / step * (self.steps - step) / 60
        values = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
        print(f"{self.stage}: step {step} of {self.steps}, {values}, {left:.0f} min left", flush=True)


def cosine(progress: float) -> float:
    """Learning rate, as a share of the highest, at a share of the steps: it falls from the start."""
    return 0.5 + 0.5 * math.cos(math.pi * progress)


def constant(progress: float) -> float:
    """The highest learning rate all along; averaging the weights settles them."""
    return 1.0


def train_steps(
    parameters: list[nn.Parameter], rate: float, steps: int, decay: Callable[[float], float]
) -> Iterator[int]:
    """Yield 1 ... steps, updating the parameters after each: AdamW with a warm-up and a decay."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 100) * decay(i / steps))
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        yield step
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


def train_vae(vae: AutoencoderKL, pictures: Tensor, recipe: Recipe) -> None:
    """Least squares on pixels with a light pull of the latents towards a unit Gaussian."""
    generator = torch.Generator().manual_seed(recipe.seed)
    progress = Progress("VAE", recipe.vae_steps)
    num_textures = round(recipe.vae_batch * recipe.texture_share)
    for step in train_steps(list(vae.parameters()), recipe.vae_learning_rate, recipe.vae_steps, cosine):
        rows = torch.randint(len(pictures), (recipe.vae_batch - num_textures,), generator=generator)
        batch = torch.cat([pictures[rows] / 127.5 - 1, textures(num_textures, generator)])
        posterior = vae.encode(batch).latent_dist
        error = (vae.decode(posterior.sample(generator)).sample - batch).square().mean()
        (error + recipe.kl_weight * posterior.kl().mean()).backward()
        progress(step, mse=error.detach())


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Posterior means, not yet scaled, [pictures, 4, 16, 16]."""
    return torch.cat([vae.encode(p / 127.5 - 1).latent_dist.mean for p in pictures.split(64)])


def grounding_loss(recorders: list[AttentionRecorder], targets: Tensor, captioned: Tensor) -> Tensor:
    """Cross-entropy of each pixel's attention over the tokens against the words drawn there."""
    log_maps = torch.stack([r.attention_map for r in recorders]).clamp(min=1e-6).log().mean(0)
    return -(targets * log_maps).sum(-1).mean(-1)[captioned].mean()


def loss_weights(alphas_cumprod: Tensor) -> Tensor:
    """Weight of each timestep's loss, 1 / sqrt(snr + 0.05), divided by its mean.

    At 16 x 16 latents, place and shape of an object are settled at signal-to-noise ratios of 0.01 to 0.3, where
    the plain loss is a hundredth of what it is on clean pictures.
    Choi et al., "Perception Prioritized Training of Diffusion Models", 2022, https://arxiv.org/abs/2204.00227.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = 1 / (snr + 0.05).sqrt()
    return weights / weights.mean()


def train_unet(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    latents: Tensor,
    tokens: Tensor,
    empty_tokens: Tensor,
    targets: Tensor,
    recipe: Recipe,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Noise prediction with dropped prompts, and grounding; returns both networks with their averaged weights."""
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    scheduler = make_scheduler()
    weights = loss_weights(scheduler.alphas_cumprod)
    both = nn.ModuleList([unet, text_encoder])
    average = AveragedModel(both, multi_avg_fn=get_ema_multi_avg_fn(recipe.unet_average_decay))
    progress = Progress("UNet", recipe.unet_steps)
    with record_finest_cross_attention(unet) as recorders:
        for step in train_steps(list(both.parameters()), recipe.unet_learning_rate, recipe.unet_steps, constant):
            average.update_parameters(both)
            rows = torch.randint(len(latents), (recipe.unet_batch,), generator=generator)
            captioned = torch.rand(recipe.unet_batch, generator=generator) >= recipe.prompt_dropout
            prompt = torch.where(captioned[:, None], tokens[rows], empty_tokens)
            noise, blur = torch.randn(2, *latents[rows].shape, generator=generator)
            timesteps = torch.randint(1000, (recipe.unet_batch,), generator=generator)
            noisy = scheduler.add_noise(latents[rows] + recipe.latent_noise * blur, noise, timesteps)
            predicted = unet(noisy, timesteps, text_encoder(prompt).last_hidden_state).sample
            errors = (predicted - noise).square().mean(dim=(1, 2, 3))
            error = (errors * weights[timesteps]).mean()
            grounding = grounding_loss(recorders, targets[rows].float(), captioned)
            (error + recipe.grounding_weight * grounding).backward()
            progress(step, mse=error.detach(), grounding=grounding.detach())
    both.load_state_dict(average.module.state_dict())
    return unet, text_encoder


@torch.no_grad()
def rescale_embeddings(text_encoder: CLIPTextModel, unet: UNet2DConditionModel, scale: float) -> None:
    """Multiply the text embeddings by `scale` and the weights that read them by its inverse: the same function.

    Adam moves every value of an embedding by its learning rate, so its reach grows with their number. The authors'
    rate suits Stable Diffusion's 77 x 768 values; the 77 x 64 here have the like reach when they are smaller.
    """
    text_encoder.final_layer_norm.weight.mul_(scale)
    text_encoder.final_layer_norm.bias.mul_(scale)
    for name, parameter in unet.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            parameter.div_(scale)


# --- the recipe ----------------------------------------------------------------------------------


def train(out: Path, recipe: Recipe) -> None:
    """Run all three stages and write the model folder, weights in half precision."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    rng = random.Random(f"training-{recipe.seed}")
    # two objects are the harder task: which word belongs to which
    scenes = [random_scene(rng, num_objects=rng.choice((1, 2, 2))) for _ in range(recipe.num_scenes)]
    pictures = draw_all(scenes)
    print(f"drew {len(scenes)} scenes", flush=True)

    torch.manual_seed(recipe.seed)
    vae = make_vae()
    train_vae(vae, pictures, recipe)
    latents = encode(vae, pictures)
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    vae.half()

    tokenizer = make_tokenizer()
    tokens = tokenizer([s.caption for s in scenes], padding="max_length", return_tensors="pt").input_ids
    empty_tokens = tokenizer("", padding="max_length", return_tensors="pt").input_ids
    targets = word_targets(scenes).half()
    torch.manual_seed(recipe.seed)
    text_encoder = make_text_encoder(tokenizer)
    unet = make_unet(text_encoder.config.hidden_size)
    train_unet(unet, text_encoder, latents / latents.std(), tokens, empty_tokens, targets, recipe)
    rescale_embeddings(text_encoder, unet, recipe.embedding_scale)
    parts = vae, text_encoder.half(), tokenizer, unet.half(), make_scheduler()
    StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m nti_batch.demo.train", description="Train the embedded model.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write the model to")
    train(parser.parse_args().out, Recipe())
