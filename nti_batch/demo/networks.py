"""Networks, tokenizer and scheduler of the embedded model, without trained weights."""

import json

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nti_batch.demo.scenes import COLOURS, PLACES, SHAPES, SIZE, SIZES

LATENT_SIZE = SIZE // 4
MAX_TOKENS = 77


def make_tokenizer() -> CLIPTokenizer:
    """Make a CLIP tokenizer whose vocabulary has all bytes and one token for each word of a scene."""
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
    """Make a text encoder of one layer: an embedding depends mostly on its own word, and on the words before it."""
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
    """Make a VAE from 3 x 64 x 64 pixels to 4 x 16 x 16 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        latent_channels=4,
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
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        cross_attention_dim=text_dim,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def make_scheduler() -> DDIMScheduler:
    """Make a DDIM scheduler with the noise schedule and settings of Stable Diffusion."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
