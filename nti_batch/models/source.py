"""Where a model is, and what its JSON files say: one that cannot be used is refused before diffusers is imported."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EMBEDDED_MODEL = Path(__file__).parents[1] / "demo" / "model"


Precision = Literal["float32", "bfloat16", "float16"]


SUPPORTED = "supported are the text-to-image models of Stable Diffusion 1.x, 2.x and XL"


_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


_Json = dict[str, str | int | float | bool | list[int] | list[str] | None]


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

    def read_config(self, part: str, file: str) -> _Json:
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
        config: _Json = json.loads(path.read_text())
        return config


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What the job must know of a model before its weights are loaded."""

    size: int
    """Height and width that the model was trained for, in pixels."""

    pixels_per_latent: int
    """Pixels for each latent, along one side."""

    latent_channels: int
    is_xl: bool
    """Whether it has Stable Diffusion XL's two text encoders, pooled embedding and size conditioning."""

    zeros_for_empty_prompt: bool
    """Whether the embedding of "" is zero."""

    @classmethod
    def of(cls, source: ModelSource) -> "ModelDescription":
        """Read it from the model's JSON files.

        Raises:
            ValueError: If the model is missing, or of a family that is not supported.
        """
        source.check()
        if source.folder and (source.folder / "transformer").is_dir():
            raise ValueError(
                f"model {source.name!r} has a transformer instead of a UNet (a flow model such as Stable Diffusion 3 "
                f"or FLUX): {SUPPORTED}"
            )
        unet = source.read_config("unet", "config.json")
        if unet["in_channels"] != unet["out_channels"]:
            raise ValueError(
                f"model {source.name!r} takes {unet['in_channels']} channels and gives {unet['out_channels']} "
                f"(an inpainting, depth or upscaling model): {SUPPORTED}"
            )
        is_xl = _is_xl(source, unet)
        _check_scheduler(source)
        vae = source.read_config("vae", "config.json")
        if vae.get("latents_mean"):
            raise ValueError(
                f"model {source.name!r} shifts its latents by a mean of each channel (as Playground 2.5): {SUPPORTED}"
            )
        channels = vae["block_out_channels"]
        assert isinstance(channels, list)
        factor = 2 ** (len(channels) - 1)
        size, latent_channels = unet["sample_size"], unet["in_channels"]
        assert isinstance(size, int) and isinstance(latent_channels, int)
        zeros = is_xl and source.read_config("", "model_index.json").get("force_zeros_for_empty_prompt", True)
        return cls(size * factor, factor, latent_channels, is_xl, bool(zeros))

    def latents(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of the latents of such a picture, [channels, height, width]."""
        return self.latent_channels, height // self.pixels_per_latent, width // self.pixels_per_latent

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for a picture that the VAE cannot take."""
        if min(height, width) <= 0 or height % self.pixels_per_latent or width % self.pixels_per_latent:
            raise ValueError(
                f"a picture of height {height} and width {width} does not fit the model's VAE, allowed: multiples of "
                f"{self.pixels_per_latent}, for example {self.size}"
            )


def embedding_shape(source: ModelSource, is_xl: bool) -> tuple[int, int]:
    """Tokens and width of an embedding, from the model's JSON files; that of XL has the pooled one as a row.

    Raises:
        ValueError: If the model lacks one of them.
    """
    tokens = source.read_config("tokenizer", "tokenizer_config.json")["model_max_length"]
    encoders = ("text_encoder", "text_encoder_2") if is_xl else ("text_encoder",)
    dims = [source.read_config(encoder, "config.json")["hidden_size"] for encoder in encoders]
    assert isinstance(tokens, int)
    return tokens + is_xl, sum(dim for dim in dims if isinstance(dim, int))


def _is_xl(source: ModelSource, unet: _Json) -> bool:
    condition = unet.get("addition_embed_type")
    if condition not in (None, "text_time"):
        raise ValueError(f"model {source.name!r} has a UNet that is also conditioned on {condition!r}: {SUPPORTED}")
    if condition and source.read_config("", "model_index.json").get("requires_aesthetics_score"):
        raise ValueError(
            f"model {source.name!r} is the refiner of Stable Diffusion XL, which only finishes pictures (one text "
            f"encoder, an aesthetics score): give the base model; {SUPPORTED}"
        )
    return condition is not None


def _check_scheduler(source: ModelSource) -> None:
    scheduler = source.read_config("scheduler", "scheduler_config.json")
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"model {source.name!r} predicts {prediction!r}, allowed: 'epsilon', 'v_prediction'")
    if prediction == "epsilon" and scheduler.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"model {source.name!r} predicts 'epsilon' from a schedule that ends in noise alone "
            "(rescale_betas_zero_snr), where noise says nothing of the picture: allowed with 'v_prediction'"
        )
