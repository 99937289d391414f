"""Place of a model: a folder, a hub id or a file, and its JSON files."""

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nti_batch.json_object import JsonObject

EMBEDDED_MODEL = Path(__file__).parents[1] / "demo" / "model"


Precision = Literal["float32", "bfloat16", "float16"]


_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


_MAX_JSON_BYTES = 1 << 20
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_DEFAULT_LORA = "pytorch_lora_weights.safetensors"
"""Name under which diffusers saves a LoRA in a folder."""


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA that is merged into the weights of a model."""

    name: str
    """A `.safetensors` file, or a folder with one."""

    weight: float = 1.0
    """Factor of what it adds to the weights."""

    @classmethod
    def parse(cls, text: str) -> "Lora":
        """Read 'PATH' or 'PATH=WEIGHT'.

        Raises:
            ValueError: If the weight is not finite, or there is no path.
        """
        name, weight = text, 1.0
        path, equals, number = text.rpartition("=")
        with suppress(ValueError):  # a path may hold the sign
            if equals:
                weight, name = float(number), path
        if not name or not math.isfinite(weight):
            raise ValueError(f"model.loras is {text!r}, allowed: PATH or PATH=WEIGHT, such as 'style.safetensors=0.8'")
        return cls(name, weight)

    @classmethod
    def parse_all(cls, texts: Sequence[str]) -> "tuple[Lora, ...]":
        """Read several, as `parse` does."""
        return tuple(map(cls.parse, texts))

    @property
    def file(self) -> Path:
        """The file of weights, if there is one."""
        path = Path(self.name)
        if (path / _DEFAULT_LORA).is_file():
            return path / _DEFAULT_LORA
        files = list(path.glob("*.safetensors"))
        return files[0] if len(files) == 1 else path

    def check(self) -> None:
        """Check that there is a file of weights.

        Raises:
            ValueError: If there is none, or a folder has several.
        """
        if self.file.suffix in _PICKLES:
            raise ValueError(f"LoRA {self.name!r} is a pickle, which can run any code; allowed: .safetensors")
        if not self.file.is_file():
            raise ValueError(
                f"LoRA {self.name!r} is no file and no folder with one .safetensors file: give the path of a LoRA"
            )


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Place of a model."""

    name: str
    """'demo' for the embedded model, a diffusers checkpoint folder, a hub id such as 'user/model', or a path such as
    'model.safetensors'. Such a single file holds weights in Stable Diffusion's original layout."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    variant: str | None = None
    """Variant of the weights, such as 'fp16' for files named `*.fp16.safetensors`."""

    config: str | None = None
    """Folder or hub id with the JSON files and tokenizers that a single file of weights lacks."""

    vae: str | None = None
    """Another VAE than the model's own: a folder or hub id of a VAE or of a whole model, or a .safetensors file."""

    loras: tuple[Lora, ...] = ()
    """LoRAs that are merged into the UNet and the text encoders, in this order."""

    vae_tiling: bool = False
    """Whether the VAE takes one image at a time, and an image above its own size in tiles."""

    @property
    def checkpoint(self) -> Path | None:
        """Single file of weights; None for a diffusers checkpoint folder or a hub id."""
        return Path(self.name) if self.name.endswith(".safetensors") else None

    @property
    def location(self) -> str:
        """Argument of diffusers' and transformers' `from_pretrained`."""
        return str(self.folder or self._home)

    @property
    def folder(self) -> Path | None:
        """Local folder; None for a hub id."""
        if self._home == "demo":
            return EMBEDDED_MODEL
        return Path(self._home) if Path(self._home).is_dir() else None

    @property
    def hub_arguments(self) -> dict[str, str | bool | None]:
        """Further arguments of `from_pretrained`."""
        return {"revision": self.revision, "local_files_only": self.folder is not None}

    @property
    def has_local_weights(self) -> bool:
        """Whether the weights are on this machine, and not on the hub or in its cache."""
        return bool(self.checkpoint or self.folder)

    def of_part(self, part: str) -> "ModelSource":
        """Place of a part: the VAE may come from elsewhere, and a file of a VAE takes the model's own configuration."""
        if part != "vae" or self.vae is None:
            return self
        if self.vae.endswith(".safetensors"):
            return VaeSource(self.vae, revision=self.revision, config=self._home)
        return VaeSource(self.vae, variant=self.variant)

    def subfolder(self, part: str) -> str:
        """Folder of a part within the model."""
        return part

    @property
    def own(self) -> "ModelSource":
        """The model without another VAE and without LoRAs."""
        return replace(self, vae=None, loras=())

    @property
    def _home(self) -> str:
        return self.config if self.checkpoint and self.config else self.name

    def check(self) -> None:
        """Check the file of weights, and that the settings agree with each other.

        Raises:
            ValueError: If the file cannot be read, or the settings contradict each other.
        """
        if self.name.endswith(_PICKLES):
            raise ValueError(
                f"model {self.name!r} is a pickled checkpoint, which can run any code; allowed: .safetensors. "
                "Most models also have such a file, and diffusers' scripts convert a checkpoint into one"
            )
        if self.checkpoint and not self.checkpoint.is_file():
            raise ValueError(f"model {self.name!r}: the file does not exist")
        if self.checkpoint and not self.config:
            raise ValueError(
                f"model {self.name!r} holds only weights: add --model.config with a diffusers checkpoint folder or hub "
                "id that has the JSON files and tokenizers of its family; the job does not read the weights there"
            )
        if self.config and not self.checkpoint:
            raise ValueError(
                f"model.config is {self.config!r}, but model {self.name!r} is not a .safetensors file: a diffusers "
                "checkpoint folder has its own JSON files, so leave model.config out"
            )
        if self.vae is not None:
            self.of_part("vae").check()
        for lora in self.loras:
            lora.check()

    def read_config(self, part: str, file: str) -> JsonObject:
        """Read a JSON file of a part, without the weights of the part.

        Args:
            part: Subfolder of the part; empty for a file of the model itself.
            file: Name of the file.

        Raises:
            ValueError: If the model does not exist, or lacks the file, or the file is no JSON object.
        """
        source = self.of_part(part)
        if source is not self:
            return source.read_config(part, file)
        name = str(Path(self.subfolder(part), file))
        path = self._download(name) if self.folder is None else self.folder / name
        if not path.is_file():
            raise ValueError(
                f"model {self._home!r} has no {name}: give a diffusers checkpoint folder with {', '.join(_PARTS)}"
            )
        shown = f"model {self._home!r}, {name}"
        try:
            if path.stat().st_size > _MAX_JSON_BYTES:
                raise ValueError(f"it has more than {_MAX_JSON_BYTES} bytes")
            return JsonObject(json.loads(path.read_bytes()), shown)
        # a damaged file is no JSON, no UTF-8, or nested a thousand times
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{shown} cannot be read: {error}; download or save the model again") from error

    def _download(self, name: str) -> Path:
        """Fetch a file from the hub, or find it in the hub's cache."""
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self._home):
            raise ValueError(
                f"model {self._home!r} is not a folder: give a diffusers checkpoint folder, a hub id such as "
                "'user/model', or 'demo' for the embedded model"
            )
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self._home, name, revision=self.revision))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"model {self._home!r} is not a local folder, and the hub has no {name}: {reason}"
            ) from error


class VaeSource(ModelSource):
    """Place of a VAE: a folder or hub id of a whole model, or of the VAE alone."""

    __slots__ = ()

    def subfolder(self, part: str) -> str:
        """Folder of the VAE; empty if there is nothing else."""
        return part if self._has(f"{part}/config.json") or not self._has("config.json") else ""

    def _has(self, name: str) -> bool:
        if self.folder:
            return (self.folder / name).is_file()
        try:
            return self._download(name).is_file()
        except ValueError:
            return False
