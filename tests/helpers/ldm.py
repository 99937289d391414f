"""Writes a diffusers checkpoint folder as one file in Stable Diffusion's original layout.

The names follow diffusers' scripts/convert_diffusers_to_original_stable_diffusion.py, the inverse of the tested code.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def original_unet(weights: dict[str, Tensor], layers: int, cross_up_blocks: set[int]) -> dict[str, Tensor]:
    """Rename the weights of a UNet.

    Down blocks have `layers` layers, and up blocks one more; the original layout has a block for each layer.
    """
    found = {}
    for name, weight in weights.items():
        for new, old in OUTER.items():
            name = re.sub(rf"^{re.escape(new)}\.", f"{old}.", name)
        if block := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name):
            side, i, kind, j = block[1], int(block[2]), block[3], int(block[4])
            place = {
                "downresnets": f"input_blocks.{(layers + 1) * i + j + 1}.0.",
                "downattentions": f"input_blocks.{(layers + 1) * i + j + 1}.1.",
                "downdownsamplers": f"input_blocks.{(layers + 1) * (i + 1)}.0.",
                "upresnets": f"output_blocks.{(layers + 1) * i + j}.0.",
                "upattentions": f"output_blocks.{(layers + 1) * i + j}.1.",
                "upupsamplers": f"output_blocks.{(layers + 1) * i + layers}.{2 if i in cross_up_blocks else 1}.",
            }[side + kind]
            rest = name[block.end() :]
            name = place + (rest.replace("conv.", "op.") if kind == "downsamplers" else rest)
        if "resnets" in block[0] if block else re.match(r"middle_block\.[02]\.", name):
            for new, old in RESNET.items():
                name = name.replace(f".{new}.", f".{old}.")
        found[f"model.diffusion_model.{name}"] = weight
    return found


def original_vae(weights: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Rename the weights of a VAE; the decoder counts its blocks backwards, and attention is 1 x 1 convolutions."""
    found = {}
    for name, weight in weights.items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for new, old in VAE_ATTENTION.items():
                name = name.replace(f".{new}.", f".{old}.")
            weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        found[f"first_stage_model.{name}"] = weight
    return found


def original_clip(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Rename the weights of a text encoder in OpenAI's layout, which has the names of the hub's files."""
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": weight for name, weight in weights.items()}


def original_open_clip(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Rename the weights of a text encoder in OpenCLIP's layout, where queries, keys and values are one weight."""
    found, pieces = {}, {}
    for name, weight in weights.items():
        name = name.removeprefix("text_model.")
        if layer := re.match(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            pieces[layer[1], layer[3], layer[2]] = weight
            continue
        name = re.sub(r"encoder\.layers\.(\d+)", r"transformer.resblocks.\1", name)
        for new, old in OPEN_CLIP.items():
            name = name.replace(f".{new}.", f".{old}.")
        name = name.replace("final_layer_norm", "ln_final").replace("embeddings.token_embedding", "token_embedding")
        name = name.replace("embeddings.position_embedding.weight", "positional_embedding")
        if name == "text_projection.weight":
            name, weight = "text_projection", weight.T.contiguous()
        found[prefix + name] = weight
    for i, kind in {(i, kind) for i, kind, _ in pieces}:
        whole = torch.cat([pieces[i, kind, letter] for letter in "qkv"])
        found[f"{prefix}transformer.resblocks.{i}.attn.in_proj_{kind}"] = whole
    return found


def write_checkpoint(folder: Path, path: Path, open_clip: bool = False) -> Path:
    """Write the weights of a folder as one file.

    Args:
        folder: Diffusers checkpoint folder.
        path: Path of the file.
        open_clip: Whether the only text encoder of a model is in OpenCLIP's layout.
    """
    unet = json.loads((folder / "unet" / "config.json").read_text())
    cross = {i for i, kind in enumerate(unet["up_block_types"]) if kind.startswith("CrossAttn")}
    parts = {path.parent.name: load_file(path) for path in folder.glob("*/*.safetensors")}
    weights = original_unet(parts["unet"], unet["layers_per_block"], cross)
    weights |= original_vae(parts["vae"], 2)
    if "text_encoder_2" in parts:
        weights |= original_clip(parts["text_encoder"], "conditioner.embedders.0.transformer.")
        weights |= original_open_clip(parts["text_encoder_2"], "conditioner.embedders.1.model.")
    elif open_clip:
        weights |= original_open_clip(parts["text_encoder"], "cond_stage_model.model.")
    else:
        weights |= original_clip(parts["text_encoder"], "cond_stage_model.transformer.")
    save_file(weights | {"model_ema.num_updates": torch.tensor(0)}, path)
    return path
