"""Loads the networks of a model from a diffusers checkpoint folder or one file in Stable Diffusion's original layout.

The functions import diffusers and transformers only when they load weights.
"""

from collections.abc import Collection
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nti_batch.models.accepted import SUPPORTED, UNET, VAE
from nti_batch.models.rules import Rules
from nti_batch.models.source import ModelSource
from nti_batch.models.supported import ModelDescription
from nti_batch.models.text_encoders import TextEncoder, TextEncoderPair
from nti_batch.models.weight_files import Part, read_part_headers

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

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

_LEGACY_END = 2
"""`eos_token_id` of old releases, with which transformers looks for the largest token instead."""

_TOKENS_OF_A = 3
"""Start, 'a', end."""

LoadedNetwork = tuple[Any, Collection[str], Collection[str]]
"""A network, the names of the weights that it lacks, and those that it does not take."""

_OPEN_CLIP_PREFIXES: dict[Part, str] = {
    "text_encoder": "cond_stage_model.model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}


def load_network(source: ModelSource, part: Part, dtype: torch.dtype) -> Any:
    """Load one network; a local model needs no connection.

    Raises:
        ValueError: If the network is missing, incomplete or damaged, or has weights that its configuration does not
            describe.
    """
    _check_configuration(source, part)
    way_out = "check that --model.config is of its family" if source.checkpoint else "download or save it again"
    try:
        network, missing, unexpected = (_from_file if source.checkpoint else _from_folder)(source, part, dtype)
    # a damaged file makes diffusers, transformers and torch raise almost anything
    except Exception as error:
        raise ValueError(f"model {source.name!r} does not load: {part}: {_reason(error)}; {way_out}") from error
    if missing:
        raise ValueError(
            f"model {source.name!r} is incomplete: {part} lacks {len(missing)} weights, "
            f"the first is {min(missing)!r}; {way_out}"
        )
    if unexpected and part == "unet":
        raise ValueError(
            f"model {source.name!r} has {len(unexpected)} weights that the configuration of its {part} does not "
            f"describe, the first is {min(unexpected)!r}; {way_out}"
        )
    return network


def load_text_encoders(source: ModelSource, description: ModelDescription) -> TextEncoder:
    """Load the tokenizers and text encoders of a model, in float32.

    Raises:
        ValueError: If a tokenizer or an encoder is missing or incomplete.
    """
    first = _load_tokenizer(source, "tokenizer", description), load_network(source, "text_encoder", torch.float32)
    _check_tokens(source, *first)
    if not description.is_xl:
        return TextEncoder(*first)
    second = _load_tokenizer(source, "tokenizer_2", description), load_network(source, "text_encoder_2", torch.float32)
    _check_tokens(source, *second)
    end = second[1].config.eos_token_id
    if end not in (_LEGACY_END, second[0].eos_token_id):
        raise ValueError(
            f"model {source.name!r}: text_encoder_2/config.json has the eos_token_id {end}, and the tokenizer's end is "
            f"{second[0].eos_token_id}: the pooled embedding would be that of another token; allowed: the tokenizer's"
        )
    return TextEncoderPair(*first, *second, description.zeros_for_empty_prompt)


def load_scheduler(source: ModelSource) -> "DDIMScheduler":
    """Make a DDIM scheduler with the noise levels and timesteps of the model's own scheduler."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config = source.read_config("scheduler", "scheduler_config.json")
    return DDIMScheduler(**{key: value for key in _SCHEDULE_FIELDS if (value := config.get(key)) is not None})


def _load_tokenizer(source: ModelSource, part: str, description: ModelDescription) -> "CLIPTokenizer":
    """Load a tokenizer that pads and truncates to the model's number of tokens."""
    from transformers import CLIPTokenizer

    files = source.folder and {path.name for path in (source.folder / part).iterdir()}
    if files and not ("tokenizer.json" in files or {"vocab.json", "merges.txt"} <= files):
        # transformers would make a tokenizer that knows no word
        raise ValueError(
            f"model {source.location!r} has no words in {part}: allowed: tokenizer.json, or vocab.json and merges.txt; "
            "download or save it again"
        )
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source.location, subfolder=part, **_hub_arguments(source))
        tokenizer.model_max_length = description.max_tokens
        word = tokenizer("a").input_ids
    # as for the networks
    except Exception as error:
        raise ValueError(
            f"model {source.location!r}: {part} does not load: {_reason(error)}; download or save it again"
        ) from error
    if len(word) != _TOKENS_OF_A or word[1] == word[2]:
        raise ValueError(f"model {source.location!r}: {part} does not know the word 'a'; download or save it again")
    return tokenizer


def _check_tokens(source: ModelSource, tokenizer: "CLIPTokenizer", encoder: "CLIPTextModel") -> None:
    """Check that the text encoder has an embedding for each token of the tokenizer."""
    largest, size = max(tokenizer.get_vocab().values()), encoder.config.vocab_size
    if largest >= size:
        raise ValueError(
            f"model {source.name!r} has a tokenizer with the token {largest}, and a text encoder whose vocab_size is "
            f"{size}: they are not of the same model"
        )


def _check_configuration(source: ModelSource, part: Part) -> None:
    """Check a configuration against the installed diffusers, and the memory that it takes against the file of weights.

    Raises:
        ValueError: If a field that the job does not know is set, or the weights are far fewer.
    """
    if part in _RULES:
        config = source.read_config(part, "config.json")
        for name, parameter in signature(_class_of(part)).parameters.items():
            value = config.get(name, parameter.default)
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            if name not in _RULES[part] and value != default:
                config.reject(name, f"{default}, since the job does not know this field; {SUPPORTED}")
    if not source.has_local_weights:
        return
    stored = sum(header.count for header in read_part_headers(source, part))
    try:
        with torch.device("meta"):
            needed = sum(weight.numel() for weight in _empty_network(source, part).parameters())
    except Exception as error:
        raise ValueError(
            f"model {source.location!r}: {part}/config.json describes no network: {_reason(error)}; {SUPPORTED}"
        ) from error
    if needed > 2 * stored:
        raise ValueError(
            f"model {source.name!r} does not load: {part}/config.json describes {needed:,} weights, and the file has "
            f"{stored:,}: they are not of the same model"
        )


def _reason(error: Exception) -> str:
    """One line for the error of a library."""
    return " ".join(str(error).split())[:300] or type(error).__name__


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


def _from_folder(source: ModelSource, part: Part, dtype: torch.dtype) -> LoadedNetwork:
    """Load a network from a folder."""
    network, info = _class_of(part).from_pretrained(  # type: ignore[attr-defined]
        source.location,
        subfolder=part,
        variant=source.variant,
        use_safetensors=True,
        output_loading_info=True,
        **{"torch_dtype" if part in ("unet", "vae") else "dtype": dtype},
        **_hub_arguments(source),
    )
    return network, info["missing_keys"], info["unexpected_keys"]


def _from_file(source: ModelSource, part: Part, dtype: torch.dtype) -> LoadedNetwork:
    """Load a network from a single file with diffusers' converters.

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
    converted = _convert(dict(weights), part, network)
    missing: list[str] = network.load_state_dict(converted, strict=False, assign=True).missing_keys
    # a converter leaves out what the configuration does not describe
    used = {weight.data_ptr() for weight in converted.values()}
    return network.to(dtype), missing, [name for name, weight in weights.items() if weight.data_ptr() not in used]


def _empty_network(source: ModelSource, part: Part) -> nn.Module:
    """Make a network whose weights are not set."""
    network = _class_of(part)
    if part in ("unet", "vae"):
        config = network.load_config(source.location, subfolder=part, **_hub_arguments(source))  # type: ignore[attr-defined]
        return network.from_config(config)  # type: ignore[attr-defined]
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
