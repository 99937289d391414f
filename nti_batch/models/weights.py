"""Loads the networks of a model from a diffusers checkpoint folder or one file in Stable Diffusion's original layout.

The functions import diffusers and transformers only when they load weights.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from nti_batch.models.source import ModelSource
from nti_batch.models.supported import ModelDescription
from nti_batch.models.text_encoders import TextEncoder, TextEncoderPair

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import CLIPTokenizer

Part = Literal["unet", "vae", "text_encoder", "text_encoder_2"]


_ORIGINAL_PREFIXES: dict[Part, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}


_OPEN_CLIP_PREFIXES: dict[Part, str] = {
    "text_encoder": "cond_stage_model.model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}


def load_network(source: ModelSource, part: Part, dtype: torch.dtype) -> nn.Module:
    """Load one network; a local model needs no connection.

    Raises:
        ValueError: If the network is missing or incomplete, or has only pickled weights.
    """
    try:
        network, missing = (_from_file if source.checkpoint else _from_folder)(source, part, dtype)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"model {source.name!r} does not load: {reason} Allowed: safetensors weights, "
            "since a pickled checkpoint (.bin, .ckpt) can run any code. Convert it with diffusers' "
            "`save_pretrained(..., safe_serialization=True)`, and check --model.variant"
        ) from error
    if missing:
        way_out = "check that --model.config is of its family" if source.checkpoint else "download or save it again"
        raise ValueError(
            f"model {source.name!r} is incomplete: {part} lacks {len(missing)} weights, "
            f"the first is {min(missing)!r}; {way_out}"
        )
    return network


def load_text_encoders(source: ModelSource, description: ModelDescription) -> TextEncoder:
    """Load the tokenizers and text encoders of a model, in float32.

    Raises:
        ValueError: If a tokenizer or an encoder is missing or incomplete.
    """
    first = _load_tokenizer(source, "tokenizer"), load_network(source, "text_encoder", torch.float32)
    if not description.is_xl:
        return TextEncoder(*first)
    second = _load_tokenizer(source, "tokenizer_2"), load_network(source, "text_encoder_2", torch.float32)
    return TextEncoderPair(*first, *second, description.zeros_for_empty_prompt)


def load_scheduler(source: ModelSource) -> "DDIMScheduler":
    """Make a DDIM scheduler with the settings of the model's own scheduler."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler.from_config(source.read_config("scheduler", "scheduler_config.json"))


def _load_tokenizer(source: ModelSource, part: str) -> "CLIPTokenizer":
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(source.location, subfolder=part, **_hub_arguments(source))
    except OSError as error:
        raise ValueError(f"model {source.location!r} has no {part}: {str(error).splitlines()[0]}") from error


def _hub_arguments(source: ModelSource) -> dict[str, str | bool | None]:
    return {"revision": source.revision, "local_files_only": source.folder is not None}


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


def _from_folder(source: ModelSource, part: Part, dtype: torch.dtype) -> tuple[nn.Module, Collection[str]]:
    """Load a network from a folder; also return the names of the weights that it lacks."""
    network, info = _class_of(part).from_pretrained(  # type: ignore[attr-defined]
        source.location,
        subfolder=part,
        variant=source.variant,
        use_safetensors=True,
        output_loading_info=True,
        **{"torch_dtype" if part in ("unet", "vae") else "dtype": dtype},
        **_hub_arguments(source),
    )
    return network, info["missing_keys"]


def _from_file(source: ModelSource, part: Part, dtype: torch.dtype) -> tuple[nn.Module, Collection[str]]:
    """Load a network from a single file with diffusers' converters; also return the names of the weights it lacks.

    diffusers' own `from_single_file` leaves missing weights at random values without an error.

    Raises:
        ValueError: If the weights do not have the shapes of the configuration.
    """
    weights = _read_original(source, part)
    network = _empty_network(source, part)
    try:
        converted = _convert(weights, part, network)
        missing: list[str] = network.load_state_dict(converted, strict=False, assign=True).missing_keys
    # a converter raises KeyError for weights that the configuration promises and the file lacks
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"model {source.name!r}: its {part} does not fit the configuration of {source.location!r}; give a "
            f"--model.config of its family: {reason}"
        ) from error
    return network.to(dtype), missing


def _read_original(source: ModelSource, part: Part) -> dict[str, Tensor]:
    """Read the weights of a part, in the precision and with the names of the file."""
    from safetensors import SafetensorError, safe_open

    assert source.checkpoint is not None
    try:
        with safe_open(source.checkpoint, "pt") as file:
            names = [name for name in file.keys() if name.startswith(_ORIGINAL_PREFIXES[part])]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"model {source.name!r} is damaged: {error}") from error


def _empty_network(source: ModelSource, part: Part) -> nn.Module:
    """Make a network whose weights are not set."""
    network = _class_of(part)
    if part in ("unet", "vae"):
        config = network.load_config(source.location, subfolder=part, **_hub_arguments(source))  # type: ignore[attr-defined]
        # the meta device saves memory, and the minutes that billions of random weights take
        with torch.device("meta"):
            return network.from_config(config)  # type: ignore[attr-defined]
    # the meta device does not work here: CLIP has a buffer of positions that no file holds
    config = network.config_class.from_pretrained(  # type: ignore[attr-defined]
        source.location, subfolder=part, **_hub_arguments(source)
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
    # older releases of transformers wrapped CLIPTextModel under this name, and files keep it
    if not hasattr(network, "text_model"):
        converted = {name.removeprefix("text_model."): weight for name, weight in converted.items()}
    return converted
