"""Writes tiny LoRAs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nti_batch.models.loras import can_merge

needs_peft = pytest.mark.skipif(not can_merge(), reason="the extra `lora` is not installed")

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
"""A layer of the UNet of the tiny models but XL."""

KEY = "encoder.layers.0.self_attn.out_proj"
"""A layer of their text encoder."""

RANK = 2


def lora_pair(seed: int, width: int = 8) -> tuple[Tensor, Tensor]:
    """A and B of a layer with `width` inputs and outputs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, width, generator=generator), torch.randn(width, RANK, generator=generator)


def write_lora(path: Path, seed: int = 0, width: int = 8, layer: str = QUERY) -> Path:
    """Write a LoRA of a layer of the UNet and one of the text encoder, as diffusers names them."""
    weights = {}
    for name, number in ((f"unet.{layer}", seed), (f"text_encoder.text_model.{KEY}", seed + 1)):
        weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"] = lora_pair(number, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    return path


def write_kohya_lora(path: Path, alpha: float) -> Path:
    """Write the same LoRA as training scripts of others name it, with its scale alpha."""
    weights = {}
    for name, number in ((f"lora_unet_{QUERY}", 0), (f"lora_te_text_model_{KEY}", 1)):
        base = name.replace(".", "_")
        weights[f"{base}.lora_down.weight"], weights[f"{base}.lora_up.weight"] = lora_pair(number)
        weights[f"{base}.alpha"] = torch.tensor(alpha)
    save_file(weights, path)
    return path
