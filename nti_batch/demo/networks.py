"""Networks, tokenizer and scheduler of the embedded model, without trained weights."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nti_batch.demo.scenes import COLOURS, PLACES, SIZES
from nti_batch.demo.shapes import SHAPES, SIZE

LATENT_SIZE = SIZE // 4
MAX_TOKENS = 77


def make_tokenizer() -> CLIPTokenizer:
    """Make a CLIP tokenizer whose vocabulary has all bytes and one token for each word of a scene."""
    words = [*COLOURS, *SHAPES, *SIZES, *PLACES, "a", "an", "on", "at", "in", "the", "and", "of", "background"]
    merges = learn_merges(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges of byte-pair encoding with which each word becomes one token.

    The trainer of `tokenizers` orders pairs of equal frequency differently in each process; here the later pair in the
    alphabet goes first.
    """
    splits = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for split in splits for pair in pairwise(split)):
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        splits = [_merge(split, merges[-1]) for split in splits]
    return merges


def _merge(split: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Join each occurrence of a pair, from left to right."""
    merged: list[str] = []
    for token in split:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Make a text encoder of two layers, so that a word can find the place that its object has."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_vae() -> AutoencoderKL:
    """Make a VAE from 3 x 64 x 64 pixels to 4 x 16 x 16 latents.

    It has no attention, so that a part of the image depends on its own latents.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        latent_channels=4,
        mid_block_add_attention=False,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def make_unet(text_dim: int) -> UNet2DConditionModel:
    """Make a UNet with cross-attention at three resolutions, 16 x 16 to 4 x 4.

    Args:
        text_dim: Width of the text embeddings.
    """
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        cross_attention_dim=text_dim,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def make_scheduler() -> DDIMScheduler:
    """Make a DDIM scheduler with the settings of Stable Diffusion, and a noise schedule for small latents.

    Noise hides an image in 64 x 64 latents as much as one in 16 x 16 at a sixteenth of the signal-to-noise ratio,
    since sixteen times as many latents show it. Stable Diffusion's schedule would hide a small image in four fifths of
    the steps, and guidance would have its way there unopposed. At the last timestep this one has five times its
    signal-to-noise ratio, 0.022. With more, the noise of an inversion decides the background, whatever the prompt says.
    Hoogeboom et al., "simple diffusion: End-to-end diffusion for high resolution images", 2023,
    https://arxiv.org/abs/2301.11093, section 3.1.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.008,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
