"""Merges LoRAs into the networks of a model, by the loader of diffusers' pipelines, which needs the package peft."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from torch import nn

from nti_batch.models.source import Lora
from nti_batch.models.tokenizers import short_reason

_ADAPTER = "merged_lora"


def merge_loras(loras: Sequence[Lora], unet: nn.Module, encoders: Sequence[nn.Module]) -> None:
    """Add LoRAs to the weights of the UNet and the text encoders: W + weight * alpha / rank * B A.

    Raises:
        ValueError: If a LoRA does not fit; the text names it.
    """
    for lora in loras:
        with _loaded(lora, unet, encoders) as pipeline:
            pipeline.fuse_lora(
                components=["unet", *_names(encoders)],
                lora_scale=lora.weight,
                safe_fusing=True,
                adapter_names=[_ADAPTER],
            )


def check_loras(loras: Sequence[Lora], unet: nn.Module, encoders: Sequence[nn.Module]) -> None:
    """Check LoRAs against networks on the meta device, which have shapes and no values.

    Raises:
        ValueError: If a LoRA does not fit; the text names it.
    """
    for lora in loras:
        with _loaded(lora, unet, encoders):
            pass


def can_merge() -> bool:
    """Whether peft is installed, and a diffusers that knows the text encoders of transformers 5."""
    return find_spec("peft") is not None and tuple(map(int, version("diffusers").split(".")[:2])) >= (0, 41)


@contextmanager
def _loaded(lora: Lora, unet: nn.Module, encoders: Sequence[nn.Module]) -> Iterator[Any]:
    """A pipeline with a LoRA beside its weights, which are its own again at the end of the block, changed or not.

    Raises:
        ValueError: If the LoRA does not fit, or a part of it has no place in the networks.
    """
    file = lora.file
    if not can_merge():
        raise ValueError("model.loras needs peft and diffusers 0.41 or newer: pip install 'nti-batch[lora]'")
    place: dict[str, Any] = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    try:
        pipeline = _pipeline(unet, encoders)
        weights = pipeline.lora_state_dict(str(file.parent), unet_config=unet.config, **place)[0]
        pipeline.load_lora_weights(str(file.parent), adapter_name=_ADAPTER, **place)
        networks = (unet, *encoders)
        placed = sum(f".{_ADAPTER}" in name for network in networks for name, _ in network.named_parameters())
        if not placed or placed != len(weights):
            raise ValueError(f"{placed} of its {len(weights)} weights have a place in the model")
        yield pipeline
        pipeline.unload_lora_weights()
    # a file of another kind makes the libraries raise almost anything
    except Exception as error:
        raise ValueError(
            f"LoRA {lora.name!r} does not fit the model: {_reason(error)}; give a LoRA of the model's family"
        ) from error


def _reason(error: Exception) -> str:
    """One line for the error of a library; of weights with other shapes, the first."""
    found = re.search(r"size mismatch for (\S+):.*?\[([\d, ]*)\].*?\[([\d, ]*)\]", str(error))
    if found is None:
        return short_reason(error).rstrip(".")
    name = found[1].replace(f".{_ADAPTER}", "")
    return f"{name} has the shape [{found[2]}], and the model takes [{found[3]}]"


def _pipeline(unet: nn.Module, encoders: Sequence[nn.Module]) -> Any:
    """A pipeline that only loads LoRAs."""
    from transformers.utils import logging as transformers_logging

    # importing a pipeline logs that torchvision is missing
    transformers_logging.set_verbosity_error()
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils import logging

    logging.set_verbosity(logging.CRITICAL)  # the loader logs what it also raises
    if len(encoders) == 1:
        return StableDiffusionPipeline(None, *encoders, None, unet, None, None, None, requires_safety_checker=False)
    return StableDiffusionXLPipeline(None, *encoders, None, None, unet, None)


def _names(encoders: Sequence[nn.Module]) -> list[str]:
    return ["text_encoder", "text_encoder_2"][: len(encoders)]
