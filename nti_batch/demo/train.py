"""Trains the embedded model: `python -m nti_batch.demo.train OUT`.

The model is a Stable Diffusion in miniature, in a diffusers checkpoint folder. It learns from drawn scenes in four
stages:

1.  The VAE trains on scenes, and on random textures so that it also encodes camera images.
2.  The VAE encodes the scenes once.
3.  The UNet and the text encoder train together on noise prediction and *grounding*. Grounding teaches a pixel of the
    finest cross-attention layers to attend to the words of the object that is drawn there. Stable Diffusion learns
    this from captions of millions of images; a miniature needs the supervision.
    Wang et al., "TokenCompose: Text-to-Image Diffusion with Token-level Supervision", 2024,
    https://arxiv.org/abs/2312.03626.
4.  The same training goes on with textures among the scenes. Without them, predictions change abruptly with the latents
    of a camera image, and at guidance scale 7.5 a rounding error grows 40,000 times in 50 steps.

The training is seeded, and the same command goes on with a training that was ended. It takes five minutes on a GPU, and
an hour and forty minutes on two cores. `python -m nti_batch.demo.evaluate` measures the result.
"""

import argparse
import json
import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from nti_batch.data.images import to_bytes
from nti_batch.demo.attention import record_finest_cross_attention
from nti_batch.demo.networks import make_scheduler, make_text_encoder, make_tokenizer, make_unet, make_vae
from nti_batch.demo.scenes import random_scene
from nti_batch.demo.stages import EncodedScenes, UNetRecipe, VaeRecipe, unet_stage, vae_stage
from nti_batch.demo.training_data import (
    Captions,
    draw_all,
    garbled_captions,
    make_captions,
    region_masks,
    textures,
)
from nti_batch.demo.training_loop import run_stage

FINE_TUNING = UNetRecipe(steps=500, learning_rate=3e-4, decay_share=1.0, average_decay=0.99)
"""Settings of the training on scenes and textures."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of the training."""

    seed: int = 0
    num_scenes: int = 30_000
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    unet: UNetRecipe = field(default_factory=UNetRecipe)
    num_textures: int = 10_000
    fine_tuning: UNetRecipe = FINE_TUNING


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Compute the posterior means before scaling, [images, 4, 16, 16] on the CPU."""
    device = next(vae.parameters()).device
    batches = (batch.to(device) / 127.5 - 1 for batch in images.split(64))
    return torch.cat([vae.encode(batch).latent_dist.mean.cpu() for batch in batches])


def with_textures(scenes: EncodedScenes, vae: AutoencoderKL, count: int, seed: int) -> EncodedScenes:
    """Add textures to the training data, with captions of some words that the model knows and some that it does not.

    Args:
        scenes: Training data.
        vae: Trained VAE, with its scaling factor.
        count: Number of textures.
        seed: Seed of the textures and their captions.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = encode(vae, to_bytes(textures(count, generator) / 2 + 0.5)) * vae.config.scaling_factor
    captions = garbled_captions(scenes.captions, count, scenes.empty_tokens, generator)
    return EncodedScenes(
        torch.cat([scenes.latents, latents]),
        Captions(
            torch.cat([scenes.captions.tokens, captions.tokens]), torch.cat([scenes.captions.regions, captions.regions])
        ),
        scenes.empty_tokens,
        torch.cat([scenes.masks, torch.zeros(count, *scenes.masks.shape[1:])]),
    )


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


def train(out: Path, recipe: Recipe, device: torch.device) -> None:
    """Run all stages, and write the model folder with weights in half precision.

    Args:
        out: Folder of the model. Until the training ends, it has a subfolder with the state.
        recipe: Settings of the training.
        device: Device to train on.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    state = out / "training"
    state.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"training-{recipe.seed}")
    scenes = [random_scene(rng) for _ in range(recipe.num_scenes)]
    images = draw_all(scenes)
    print(f"drew {len(scenes)} scenes", flush=True)

    torch.manual_seed(recipe.seed)
    vae = make_vae().to(device)
    first = json.dumps([recipe.seed, recipe.num_scenes, asdict(recipe.vae)])
    run_stage(vae_stage(vae, images, recipe.vae, recipe.seed), state / "vae.safetensors", first)
    latents = encode(vae, images)
    vae.register_to_config(scaling_factor=1 / latents.std().item())

    tokenizer = make_tokenizer()
    captions = make_captions(scenes, recipe.unet.captions_per_scene, recipe.unet.caption_rates, tokenizer, rng)
    empty_tokens = tokenizer("", padding="max_length", return_tensors="pt").input_ids
    encoded = EncodedScenes(latents / latents.std(), captions, empty_tokens, region_masks(scenes))
    torch.manual_seed(recipe.seed)
    text_encoder = make_text_encoder(tokenizer).to(device)
    unet = make_unet(text_encoder.config.hidden_size).to(device)
    with record_finest_cross_attention(unet) as recorders:
        stage = unet_stage(unet, text_encoder, encoded, recorders, recipe.unet, recipe.seed + 1)
        run_stage(stage, state / "unet.safetensors", json.dumps(asdict(recipe)))
        wider = with_textures(encoded, vae, recipe.num_textures, recipe.seed + 2)
        stage = unet_stage(unet, text_encoder, wider, recorders, recipe.fine_tuning, recipe.seed + 2)
        run_stage(stage, state / "fine-tuning.safetensors", json.dumps(asdict(recipe)))
    rescale_embeddings(text_encoder, unet, recipe.unet.embedding_scale)
    parts = vae.half(), text_encoder.half(), tokenizer, unet.half(), make_scheduler()
    StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False).save_pretrained(out)
    shutil.rmtree(state)


def main() -> None:
    """Train on a GPU if there is one."""
    parser = argparse.ArgumentParser(prog="python -m nti_batch.demo.train", description="Train the embedded model.")
    parser.add_argument("out", type=Path, metavar="OUT", help="output folder of the model")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args().out, Recipe(), device)


if __name__ == "__main__":
    main()
