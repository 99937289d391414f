"""Place and description of a model, read from its JSON files.

The job refuses a model that it cannot use before it imports diffusers.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EMBEDDED_MODEL = Path(__file__).parents[1] / "demo" / "model"


Precision = Literal["float32", "bfloat16", "float16"]


SUPPORTED = "nti_batch supports the text-to-image models of Stable Diffusion 1.x, 2.x and XL"


_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


_Json = dict[str, str | int | float | bool | list[int] | list[str] | None]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Place of a model."""

    name: str
    """'demo' for the embedded model, a diffusers checkpoint folder, a hub id such as 'user/model', or a file of weights
    in Stable Diffusion's original layout such as 'model.safetensors'."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    variant: str | None = None
    """Variant of the weights, such as 'fp16' for files named `*.fp16.safetensors`."""

    config: str | None = None
    """Folder or hub id with the JSON files and tokenizers that a single file of weights lacks."""

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
    def _home(self) -> str:
        return self.config if self.checkpoint and self.config else self.name

    def check(self) -> None:
        """Check the file of weights, and that the settings agree with each other.

        Raises:
            ValueError: If the file cannot be read, or the settings contradict each other.
        """
        if self.name.endswith((".ckpt", ".pt", ".pth", ".bin")):
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

    def read_config(self, part: str, file: str) -> _Json:
        """Read a JSON file of a part, without the weights of the part.

        Args:
            part: Subfolder of the part; empty for a file of the model itself.
            file: Name of the file.

        Raises:
            ValueError: If the model does not exist, or lacks the file.
        """
        name = str(Path(part, file))
        path = self._download(name) if self.folder is None else self.folder / name
        if not path.is_file():
            raise ValueError(
                f"model {self._home!r} has no {name}: give a diffusers checkpoint folder with {', '.join(_PARTS)}"
            )
        config: _Json = json.loads(path.read_text())
        return config

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


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Facts about a model that the job needs before it loads the weights."""

    size: int
    """Height and width of the model's training images, in pixels."""

    pixels_per_latent: int
    """Number of pixels for each latent along one side."""

    latent_channels: int
    is_xl: bool
    """Whether the model has Stable Diffusion XL's two text encoders, pooled embedding and size conditioning."""

    zeros_for_empty_prompt: bool
    """Whether the embedding of the empty prompt is zero."""

    @classmethod
    def of(cls, source: ModelSource) -> "ModelDescription":
        """Read the description from the model's JSON files.

        Raises:
            ValueError: If the model is missing, or its family is not supported.
        """
        source.check()
        unet = _read_unet_config(source)
        is_xl = _is_xl(source, unet)
        _check_scheduler(source)
        vae = _read_vae_config(source)
        channels = vae["block_out_channels"]
        assert isinstance(channels, list)
        factor = 2 ** (len(channels) - 1)
        size, latent_channels = unet["sample_size"], unet["in_channels"]
        assert isinstance(size, int) and isinstance(latent_channels, int)
        zeros = is_xl and source.read_config("", "model_index.json").get("force_zeros_for_empty_prompt", True)
        return cls(size * factor, factor, latent_channels, is_xl, bool(zeros))

    def latents(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of the latents of an image, [channels, height, width].

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.
        """
        return self.latent_channels, height // self.pixels_per_latent, width // self.pixels_per_latent

    def check_size(self, height: int, width: int) -> None:
        """Check that the VAE takes images of a size.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.

        Raises:
            ValueError: If a side is not a positive multiple of `pixels_per_latent`.
        """
        if min(height, width) <= 0 or height % self.pixels_per_latent or width % self.pixels_per_latent:
            raise ValueError(
                f"an image of height {height} and width {width} does not fit the model's VAE; allowed: multiples of "
                f"{self.pixels_per_latent}, for example {self.size}"
            )


def embedding_shape(source: ModelSource, is_xl: bool) -> tuple[int, int]:
    """Number of rows and width of an embedding, from the model's JSON files.

    A row is a token; Stable Diffusion XL has one more row for the pooled embedding.

    Raises:
        ValueError: If the model lacks one of the files.
    """
    tokens = source.read_config("tokenizer", "tokenizer_config.json")["model_max_length"]
    encoders = ("text_encoder", "text_encoder_2") if is_xl else ("text_encoder",)
    dims = [source.read_config(encoder, "config.json")["hidden_size"] for encoder in encoders]
    assert isinstance(tokens, int)
    return tokens + is_xl, sum(dim for dim in dims if isinstance(dim, int))


def _read_unet_config(source: ModelSource) -> _Json:
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
    return unet


def _read_vae_config(source: ModelSource) -> _Json:
    vae = source.read_config("vae", "config.json")
    if vae.get("latents_mean"):
        raise ValueError(
            f"model {source.name!r} shifts its latents by a mean of each channel (like Playground 2.5): {SUPPORTED}"
        )
    return vae


def _is_xl(source: ModelSource, unet: _Json) -> bool:
    condition = unet.get("addition_embed_type")
    if condition not in (None, "text_time"):
        raise ValueError(f"model {source.name!r} has a UNet that is also conditioned on {condition!r}: {SUPPORTED}")
    if condition and source.read_config("", "model_index.json").get("requires_aesthetics_score"):
        raise ValueError(
            f"model {source.name!r} is the refiner of Stable Diffusion XL, which only finishes images (one text "
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
            f"model {source.name!r} predicts 'epsilon' with a schedule of zero terminal SNR (rescale_betas_zero_snr), "
            "where the noise holds no information about the image; allowed: 'v_prediction'"
        )
