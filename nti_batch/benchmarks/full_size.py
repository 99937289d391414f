"""Full-size UNets of the public models with random weights."""

from typing import TYPE_CHECKING, Literal

import torch

from nti_batch.models.source import Precision

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

Family = Literal["1.x", "2.1-base", "2.1", "xl"]

_TWO: dict[str, object] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}

_FULL_SIZE: dict[Family, dict[str, object]] = {
    "1.x": {"sample_size": 64, "cross_attention_dim": 768},
    "2.1-base": {"sample_size": 64, **_TWO},
    "2.1": {"sample_size": 96, **_TWO},
    "xl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
}
"""Settings of the UNets, as in the `unet/config.json` of the public models; the others are diffusers' defaults."""


def random_unet(precision: Precision, device: torch.device, family: Family = "1.x") -> "UNet2DConditionModel":
    """Make a family's full-size UNet with random weights, on which time and memory are measured."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.set_default_dtype(getattr(torch, precision))  # or a float32 copy would count as a bfloat16 network's memory
    try:
        return UNet2DConditionModel(**_FULL_SIZE[family]).to(device)
    finally:
        torch.set_default_dtype(torch.float32)
