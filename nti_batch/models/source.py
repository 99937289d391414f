"""Where a model is: a folder, a hub id or a file, and its JSON files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EMBEDDED_MODEL = Path(__file__).parents[1] / "demo" / "model"


Precision = Literal["float32", "bfloat16", "float16"]


_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


ModelJson = dict[str, str | int | float | bool | list[int] | list[str] | None]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from."""

    name: str
    """'demo' for the embedded model, a folder in diffusers' layout, a hub id such as 'user/model', or a file of weights
    in Stable Diffusion's original layout such as 'model.safetensors'."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    variant: str | None = None
    """Weights' variant, such as 'fp16' for files named `*.fp16.safetensors`."""

    config: str | None = None
    """The folder or hub id with the JSON files and tokenizers that a single file of weights lacks."""

    @property
    def checkpoint(self) -> Path | None:
        """The single file of weights, None for a model in diffusers' layout."""
        return Path(self.name) if self.name.endswith(".safetensors") else None

    @property
    def location(self) -> str:
        """What diffusers' and transformers' `from_pretrained` take."""
        return str(self.folder or self._home)

    @property
    def folder(self) -> Path | None:
        """The local folder, None for a hub id."""
        if self._home == "demo":
            return EMBEDDED_MODEL
        return Path(self._home) if Path(self._home).is_dir() else None

    @property
    def _home(self) -> str:
        return self.config if self.checkpoint and self.config else self.name

    def check(self) -> None:
        """Raise ValueError for a file of weights that cannot be read, and for settings that contradict each other."""
        if self.name.endswith((".ckpt", ".pt", ".pth", ".bin")):
            raise ValueError(
                f"model {self.name!r} is a pickled checkpoint, which can run any code: only .safetensors is taken; "
                "most models have such a file, too, and diffusers' scripts convert one"
            )
        if self.checkpoint and not self.checkpoint.is_file():
            raise ValueError(f"model {self.name!r}: there is no such file")
        if self.checkpoint and not self.config:
            raise ValueError(
                f"model {self.name!r} holds weights alone: add --model.config with a folder or hub id in diffusers' "
                "layout that has the JSON files and tokenizers of its family; its weights are not read"
            )
        if self.config and not self.checkpoint:
            raise ValueError(
                f"model.config is {self.config!r}, and model {self.name!r} is no .safetensors file: a model in "
                "diffusers' layout has its own JSON files, leave model.config out"
            )

    def read_config(self, part: str, file: str) -> ModelJson:
        """A part's settings, without its weights.

        Args:
            part: Subfolder, empty for the model's own.
            file: Name.

        Raises:
            ValueError: If there is no such model, or it lacks the part.
        """
        wanted = str(Path(part, file))
        if self.folder:
            path = self.folder / wanted
            if not path.is_file():
                raise ValueError(
                    f"model {self._home!r} has no {wanted}: a folder in diffusers' layout with "
                    f"{', '.join(_PARTS)} is needed"
                )
        elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self._home):
            raise ValueError(
                f"model {self._home!r} is no folder: give a folder in diffusers' layout, a hub id such as "
                "'user/model', or 'demo' for the embedded model"
            )
        else:
            from huggingface_hub import hf_hub_download

            try:
                path = Path(hf_hub_download(self._home, wanted, revision=self.revision))
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"model {self._home!r} is no folder here, and the hub gave no {wanted}: {reason}"
                ) from error
        config: ModelJson = json.loads(path.read_text())
        return config
