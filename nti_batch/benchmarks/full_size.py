"""A checkpoint of a public model's shapes with random weights, and a shard of captioned images.

`python -m nti_batch.benchmarks.full_size FOLDER --family 1.x` writes `FOLDER/model` and `FOLDER/images.tar`, so that
every command can be tried at full size without a download. Time and memory do not depend on the weights; the images
that they give mean nothing, and null-text inversion does not converge on them.
"""

import argparse
import io
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F

from nti_batch.data.tar import write_samples
from nti_batch.models.source import EMBEDDED_MODEL, Precision

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

Family = Literal["1.x", "2.1-base", "2.1", "xl"]

_CLIP_L: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
_OPEN_CLIP_H = _CLIP_L | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
}
_OPEN_CLIP_G = _OPEN_CLIP_H | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_TWO: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Settings of a family's networks, as in the JSON files of its public model; others are the libraries' defaults."""

    unet: dict[str, Any]
    vae: dict[str, Any] = field(default_factory=lambda: _VAE)
    text_encoders: list[dict[str, Any]] = field(default_factory=lambda: [_OPEN_CLIP_H])
    prediction_type: str = "epsilon"


FAMILIES: dict[Family, Shapes] = {
    "1.x": Shapes(unet={"sample_size": 64, "cross_attention_dim": 768}, text_encoders=[_CLIP_L]),
    "2.1-base": Shapes(unet={"sample_size": 64, **_TWO}),
    "2.1": Shapes(unet={"sample_size": 96, **_TWO}, prediction_type="v_prediction"),
    "xl": Shapes(
        unet={
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
        vae=_VAE | {"scaling_factor": 0.13025},
        text_encoders=[_CLIP_L, _OPEN_CLIP_G],
    ),
}


def random_unet(precision: Precision, device: torch.device, family: Family = "1.x") -> "UNet2DConditionModel":
    """Make a family's full-size UNet with random weights on a device, on which time and memory are measured."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.set_default_dtype(getattr(torch, precision))  # or a float32 copy would count as a bfloat16 network's memory
    try:
        with device:
            return UNet2DConditionModel(**FAMILIES[family].unet)
    finally:
        torch.set_default_dtype(torch.float32)


def random_vae(device: torch.device, family: Family = "1.x") -> "AutoencoderKL":
    """Make a family's full-size VAE with random weights on a device, in float32."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with device:
        return AutoencoderKL(**FAMILIES[family].vae)


def random_text_encoders(device: torch.device, family: Family = "1.x") -> list[torch.nn.Module]:
    """Make a family's full-size text encoders with random weights on a device, in float32.

    Their vocabulary is larger than that of the tokenizer, the embedded model's, whose end token they know.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    classes = CLIPTextModel, CLIPTextModelWithProjection
    with device:
        return [
            encoder(CLIPTextConfig(**ends, **settings))
            for encoder, settings in zip(classes, FAMILIES[family].text_encoders, strict=False)
        ]


def write_checkpoint(folder: Path, family: Family, device: torch.device, seed: int = 0) -> None:
    """Write a diffusers checkpoint of a family with random weights: the UNet in bfloat16, the rest in float32."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    random_unet("bfloat16", device, family).save_pretrained(folder / "unet")
    random_vae(device, family).save_pretrained(folder / "vae")
    parts = {"unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL")}
    for number, encoder in zip(("", "_2"), random_text_encoders(device, family), strict=False):
        encoder.save_pretrained(folder / f"text_encoder{number}")  # type: ignore[operator]
        shutil.copytree(EMBEDDED_MODEL / "tokenizer", folder / f"tokenizer{number}", dirs_exist_ok=True)
        parts[f"text_encoder{number}"] = "transformers", type(encoder).__name__
        parts[f"tokenizer{number}"] = "transformers", "CLIPTokenizer"
    DDIMScheduler(**_SCHEDULER, prediction_type=FAMILIES[family].prediction_type).save_pretrained(folder / "scheduler")
    parts["scheduler"] = "diffusers", "DDIMScheduler"
    pipeline = "StableDiffusionXLPipeline" if family == "xl" else "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **parts}, indent=2))


def write_images(shard: Path, count: int, height: int = 576, width: int = 768) -> None:
    """Write a shard of random JPEG images, whose decoding takes as long as a photograph's, with captions."""
    write_samples(shard, _samples(count, height, width))


def _samples(count: int, height: int, width: int) -> Iterator[dict[str, str | bytes]]:
    from PIL import Image

    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        coarse, fine = (
            F.interpolate(
                torch.rand(1, 3, height // n, width // n, generator=generator), (height, width), mode="bilinear"
            )
            for n in (64, 4)
        )
        mixed = torch.lerp(coarse, fine, 0.2) * 255
        data = io.BytesIO()
        Image.fromarray(mixed[0].byte().permute(1, 2, 0).numpy()).save(data, "JPEG", quality=92)
        caption = f"a random image, number {number}".encode()
        yield {"__key__": f"{number:06}", "jpg": data.getvalue(), "txt": caption}


def main() -> None:
    """Write the checkpoint and the shard, and print where they are."""
    parser = argparse.ArgumentParser(description="Write a full-size checkpoint with random weights, and images.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=get_args(Family), default="1.x")
    parser.add_argument("--images", type=int, default=64, help="number of images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    start = time.monotonic()
    model, shard = arguments.folder / "model", arguments.folder / "images.tar"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(model, arguments.family, torch.device(arguments.device))
    write_images(shard, arguments.images)
    print(f"written in {time.monotonic() - start:.0f} s: --model.name={model} --data.shards={shard}")


if __name__ == "__main__":
    main()
