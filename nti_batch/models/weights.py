"""Loads the networks of a model from a diffusers checkpoint folder or one file in Stable Diffusion's original layout.

The functions import diffusers and transformers only when they load weights.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nti_batch.models.accepted import SUPPORTED, UNET, VAE
from nti_batch.models.loras import check_loras, merge_loras
from nti_batch.models.rules import Rules
from nti_batch.models.source import ModelSource
from nti_batch.models.supported import ModelDescription
from nti_batch.models.text_encoders import TextEncoder, TextEncoderPair
from nti_batch.models.tokenizers import load_tokenizers, short_reason
from nti_batch.models.weight_files import PARTS, Part, read_part_headers

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

_SCHEDULE_FIELDS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "timestep_spacing",
)

_RULES: dict[Part, Rules] = {"unet": UNET, "vae": VAE}

_DIFFUSERS_VAE = "encoder.down_blocks."
"""Beginning of names in a file of a VAE that diffusers has written."""

_OPEN_CLIP_PREFIXES: dict[Part, str] = {
    "text_encoder": "cond_stage_model.model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}


def check_model(source: ModelSource, description: ModelDescription) -> None:
    """Check that a model will load: its tokenizers, and what the headers of its files of weights say.

    Raises:
        ValueError: If a tokenizer or a network is missing, incomplete or damaged.
    """
    load_tokenizers(source, description)
    parts = PARTS[: 3 + description.is_xl]
    for part in parts:
        _check_network(source.of_part(part), part)
    if source.loras:
        with torch.device("meta"):
            unet, _, *encoders = (_empty_network(source, part) for part in parts)
        check_loras(source.loras, unet, encoders)


def load_network(source: ModelSource, part: Part, dtype: torch.dtype) -> Any:
    """Load one network; a local model needs no connection.

    Raises:
        ValueError: If the network is missing, incomplete or damaged, or has weights that its configuration does not
            describe.
    """
    source = source.of_part(part)
    _check_network(source, part)
    with _errors_in_words(source, part):
        return (_from_file if source.checkpoint else _from_folder)(source, part, dtype)


def load_text_encoders(source: ModelSource, description: ModelDescription) -> TextEncoder:
    """Load the tokenizers and text encoders of a model, in float32.

    Raises:
        ValueError: If a tokenizer or an encoder is missing, incomplete or damaged, or the two do not fit.
    """
    tokenizers = load_tokenizers(source, description)
    encoder = load_network(source, "text_encoder", torch.float32)
    if not description.is_xl:
        return TextEncoder(tokenizers[0], encoder)
    encoder_2 = load_network(source, "text_encoder_2", torch.float32)
    return TextEncoderPair(tokenizers[0], encoder, tokenizers[1], encoder_2, description.zeros_for_empty_prompt)


def load_unet(source: ModelSource, text: TextEncoder, dtype: torch.dtype) -> Any:
    """Load the UNet, and merge the LoRAs into it and into the text encoders.

    The LoRAs are merged in float32, so that they are rounded once.

    Raises:
        ValueError: As `load_network`; if a LoRA does not fit.
    """
    unet = load_network(source, "unet", torch.float32 if source.loras else dtype)
    if source.loras:
        merge_loras(source.loras, unet, text.encoders)
    return unet.to(dtype)


def load_scheduler(source: ModelSource) -> "DDIMScheduler":
    """Make a DDIM scheduler with the noise levels and timesteps of the model's own scheduler."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config = source.read_config("scheduler", "scheduler_config.json")
    return DDIMScheduler(**{key: value for key in _SCHEDULE_FIELDS if (value := config.get(key)) is not None})


def _check_network(source: ModelSource, part: Part) -> None:
    """Check the fields that a newer diffusers may have, and load a local network on paper: shapes, and no values.

    Raises:
        ValueError: If the job does not know a field, or the weights do not have the shapes of the configuration.
    """
    if part in _RULES:
        config = source.read_config(part, "config.json")
        for name, parameter in signature(_class_of(part).__init__).parameters.items():
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            if name in config and name not in _RULES[part] and config.value(name) != default:
                config.reject(name, f"{default}, since the job does not know this field; {SUPPORTED}")
    if source.has_local_weights:
        headers = read_part_headers(source, part)
        with _errors_in_words(source, part), torch.device("meta"):
            _fill(source, part, _empty_network(source, part), {h.name: torch.empty(h.shape) for h in headers})


@contextmanager
def _errors_in_words(source: ModelSource, part: Part) -> Iterator[None]:
    """Raise a ValueError of one line for whatever diffusers, transformers and torch raise for a damaged model."""
    try:
        yield
    except Exception as error:
        way_out = "check that --model.config is of its family" if source.checkpoint else "download or save it again"
        raise ValueError(f"model {source.name!r} does not load: {part} {short_reason(error)}; {way_out}") from error


def _check_names(part: Part, missing: Collection[str], unexpected: Collection[str]) -> None:
    if missing:
        raise ValueError(f"lacks {len(missing)} weights, the first is {min(missing)!r}")
    if unexpected and part == "unet":
        raise ValueError(
            f"has {len(unexpected)} weights that its configuration does not describe, the first is {min(unexpected)!r}"
        )


def _class_of(part: Part) -> type[nn.Module]:
    """Class of a part; silences the logs of the libraries."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.utils import logging as diffusers_logging
    from transformers import CLIPTextModel, CLIPTextModelWithProjection
    from transformers.utils import logging as transformers_logging

    # from_pretrained logs that accelerate is missing, which only saves memory while it loads
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    networks: dict[Part, type[nn.Module]] = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    return networks[part]


def _from_folder(source: ModelSource, part: Part, dtype: torch.dtype) -> nn.Module:
    """Load a network from a folder or the hub."""
    network, info = _class_of(part).from_pretrained(  # type: ignore[attr-defined]
        source.location,
        subfolder=source.subfolder(part),
        variant=source.variant,
        use_safetensors=True,
        output_loading_info=True,
        **{"torch_dtype" if part in ("unet", "vae") else "dtype": dtype},
        **source.hub_arguments,
    )
    _check_names(part, info["missing_keys"], info["unexpected_keys"])
    return network


def _from_file(source: ModelSource, part: Part, dtype: torch.dtype) -> nn.Module:
    """Load a network from a single file.

    diffusers' own `from_single_file` leaves missing weights at random values without an error.
    """
    from safetensors import safe_open

    names = [header.name for header in read_part_headers(source, part)]
    assert source.checkpoint is not None
    with safe_open(source.checkpoint, "pt") as file:
        weights = {name: file.get_tensor(name) for name in names}
    # the meta device saves memory, and the minutes that billions of random weights take; it does not work for CLIP,
    # which has a buffer of positions that no file holds
    with torch.device("meta" if part in ("unet", "vae") else "cpu"):
        network = _empty_network(source, part)
    _fill(source, part, network, weights)
    return network.to(dtype)


def _fill(source: ModelSource, part: Part, network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set the weights of a network.

    Raises:
        ValueError: If a weight is missing or left over.
        RuntimeError: If a weight has another shape.
    """
    count = sum(weight.numel() for weight in weights.values())
    is_original = source.checkpoint and not any(name.startswith(_DIFFUSERS_VAE) for name in weights)
    converted = _convert(weights, part, network) if is_original else _rename(weights, part, network)
    missing, unexpected = network.load_state_dict(converted, strict=False, assign=True)
    _check_names(part, missing, unexpected)
    # the converter leaves out what the configuration does not describe
    if part == "unet" and (left := count - sum(weight.numel() for weight in converted.values())):
        raise ValueError(f"has {left:,} values that its configuration does not describe")


def _rename(weights: dict[str, Tensor], part: Part, network: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of a folder as the installed diffusers and transformers name them."""
    if part in ("unet", "vae"):
        return network._fix_state_dict_keys_on_load(weights)  # type: ignore[operator]
    return _without_wrapper(weights, network)


def _empty_network(source: ModelSource, part: Part) -> nn.Module:
    """Make a network whose weights are not set."""
    network = _class_of(part)
    if part in ("unet", "vae"):
        config = network.load_config(source.location, subfolder=source.subfolder(part), **source.hub_arguments)  # type: ignore[attr-defined]
        return network.from_config(config)  # type: ignore[attr-defined]
    config = network.config_class.from_pretrained(  # type: ignore[attr-defined]
        source.location, subfolder=source.subfolder(part), **source.hub_arguments
    )
    return network(config)


def _convert(weights: dict[str, Tensor], part: Part, network: nn.Module) -> dict[str, Tensor]:
    """Rename the weights as diffusers and transformers name them."""
    from diffusers.loaders import single_file_utils as converters

    if part == "unet":
        return converters.convert_ldm_unet_checkpoint(weights, network.config)
    if part == "vae":
        return converters.convert_ldm_vae_checkpoint(weights, network.config)
    prefix = _OPEN_CLIP_PREFIXES[part]
    if any(name.startswith(prefix) for name in weights):
        converted = converters.convert_open_clip_checkpoint(network, weights, prefix=prefix)
    else:
        converted = converters.convert_ldm_clip_checkpoint(weights)
    return _without_wrapper(converted, network)


def _without_wrapper(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Undo the wrapping of CLIPTextModel in older releases of transformers, whose name the files keep."""
    if hasattr(network, "text_model"):
        return weights
    return {name.removeprefix("text_model."): weight for name, weight in weights.items()}
