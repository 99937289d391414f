"""Files of weights: which of them a model is loaded from, and what their headers say, before any weight is read."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from nti_batch.models.source import ModelSource, VaeSource

Part = Literal["unet", "vae", "text_encoder", "text_encoder_2"]
PARTS: tuple[Part, ...] = ("unet", "vae", "text_encoder", "text_encoder_2")
"""Networks of a model; only Stable Diffusion XL has the last one."""

ORIGINAL_PREFIXES: dict[Part, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
"""Beginnings of the names of a part's weights in Stable Diffusion's original layout."""

_VAE_ALONE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
"""Beginnings of the names in a file that holds a VAE and nothing else."""

_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_STEMS = ("diffusion_pytorch_model", "model")
_FLOATS = ("BF16", "F16", "F32", "F64")


@dataclass(frozen=True, slots=True)
class WeightHeader:
    """Entry of a weight in the header of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Kind of the values, as safetensors names it: 'F32', 'F16', 'BF16', ..."""

    @property
    def is_float(self) -> bool:
        """Whether the values are numbers of 16 bits or more, and not the codes of a quantized model."""
        return self.dtype in _FLOATS

    @property
    def count(self) -> int:
        """Number of values."""
        return prod(self.shape)


def read_part_headers(source: ModelSource, part: Part) -> Sequence[WeightHeader]:
    """Read what the headers of a local model say about a part.

    Raises:
        ValueError: If the part has no safetensors weights, or a file is damaged or quantized.
    """
    source = source.of_part(part)
    if source.checkpoint:
        everything = list(read_headers([source.checkpoint]))
        headers = [h for h in everything if h.name.startswith(ORIGINAL_PREFIXES[part])]
        if not headers and isinstance(source, VaeSource):
            headers = [h for h in everything if h.name.startswith(_VAE_ALONE)]
    else:
        assert source.folder is not None
        headers = list(read_headers(weight_files(source.folder, source.subfolder(part), source.variant)))
    if not headers and source.checkpoint:
        raise ValueError(
            f"model {source.name!r} has no weights of {part}: give a file with all parts, and check that "
            "--model.config is of its family"
        )
    if not headers:
        raise ValueError(
            f"model {source.name!r} does not load: it has no weights of {part}. Allowed: safetensors weights, since a "
            "pickled checkpoint (.bin, .ckpt) can run any code. Convert it with diffusers' "
            "`save_pretrained(..., safe_serialization=True)`, and check --model.variant"
        )
    for header in headers:
        if not header.is_float and not header.name.endswith("position_ids"):
            raise ValueError(
                f"model {source.name!r} does not load: {header.name!r} of {part} is quantized, allowed: weights in "
                f"{', '.join(_FLOATS)}; give the model's original weights"
            )
    return headers


def is_half(source: ModelSource, part: Part) -> bool:
    """Whether a part of a local model has weights of 16 bits."""
    return any(header.dtype in ("F16", "BF16") for header in read_part_headers(source, part))


def weight_files(folder: Path, part: str, variant: str | None) -> Sequence[Path]:
    """Files that diffusers and transformers load a part from; a part without the variant gives its plain weights.

    Args:
        folder: A diffusers checkpoint folder.
        part: Subfolder of the part.
        variant: Variant in a name such as model.fp16.safetensors or model.fp16-00001-of-00002.safetensors.
    """
    # a name without its shard and variant
    names = {path: _SHARD.sub("", path.stem).partition(".") for path in sorted((folder / part).glob("*.safetensors"))}
    weights = [path for path, (stem, _, _) in names.items() if stem in _STEMS]
    wanted = [path for path in weights if (names[path][2] or None) == variant]
    return wanted or [path for path in weights if not names[path][2]]


def read_headers(files: Sequence[Path]) -> Iterator[WeightHeader]:
    """Read what the headers of files say.

    Raises:
        ValueError: If a file is damaged or is no file.
    """
    from safetensors import SafetensorError, safe_open

    for path in files:
        if not path.is_file():
            raise ValueError(f"{str(path)!r} is missing or is not a file; download or save the model again")
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    entry = file.get_slice(name)
                    yield WeightHeader(name, tuple(entry.get_shape()), entry.get_dtype())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}; download or save the model again") from error
