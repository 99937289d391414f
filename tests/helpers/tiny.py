"""Writes tiny diffusers checkpoint folders and input shards."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from nti_batch.demo.networks import make_tokenizer

ZERO_SNR: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
"""Settings of a scheduler with zero terminal SNR."""


def write_model(folder: Path, prediction_type: str = "epsilon", seed: int = 0, **scheduler: object) -> Path:
    """Write a Stable Diffusion model with random weights, a VAE of factor 2, and images of 16 x 16 pixels."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(_text_config(tokenizer, 8, 1)).save_pretrained(folder / "text_encoder")
    _write_vae(folder, 0.18215)
    _write_unet(folder)
    _write_scheduler(folder, prediction_type=prediction_type, **scheduler)
    return folder


def write_xl_model(folder: Path, zeros_for_empty_prompt: bool = True, seed: int = 0, **scheduler: object) -> Path:
    """Write a Stable Diffusion XL model with random weights, embeddings of 8 + 12 values, and a pooled one of 6."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(_text_config(tokenizer, 8, 2)).save_pretrained(folder / "text_encoder")
    second = make_tokenizer()
    second.pad_token = "!"
    second.save_pretrained(folder / "tokenizer_2")
    config = _text_config(tokenizer, 12, 3, projection_dim=6)
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder_2")
    _write_vae(folder, 0.13025)
    _write_unet(
        folder,
        cross_attention_dim=20,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 + 6 * 4,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    _write_scheduler(folder, **scheduler)
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": zeros_for_empty_prompt}
    (folder / "model_index.json").write_text(json.dumps(index | parts))
    return folder


def _text_config(tokenizer: CLIPTokenizer, width: int, layers: int, **more: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **more,
    )


def _write_vae(folder: Path, scaling_factor: float) -> None:
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        sample_size=16,
        scaling_factor=scaling_factor,
    ).save_pretrained(folder / "vae")


def _write_unet(folder: Path, **changes: object) -> None:
    defaults = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 2,
    }
    UNet2DConditionModel(**{**defaults, **changes}).save_pretrained(folder / "unet")


def _write_scheduler(folder: Path, **changes: object) -> None:
    defaults = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    DDIMScheduler(**{**defaults, **changes}).save_pretrained(folder / "scheduler")


def png(seed: int, size: int = 16) -> bytes:
    """Encode a random image as PNG."""
    generator = torch.Generator().manual_seed(seed)
    array = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=generator).numpy()
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar of members."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def captioned(count: int, first: int = 0) -> dict[str, bytes]:
    """Make the members of `count` good samples: image and caption."""
    members: dict[str, bytes] = {}
    for i in range(first, first + count):
        members |= {f"{i:03}.png": png(i), f"{i:03}.txt": f"a small red circle, number {i}".encode()}
    return members


def write_mixed_shard(path: Path) -> Path:
    """Write a shard of three images and one HTML page."""
    return write_shard(path, captioned(3) | {"html.png": b"<html>", "html.txt": b"a page"})
