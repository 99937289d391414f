"""Facts about a model that the job needs before it loads the weights, and the models that it refuses."""

import re
from collections.abc import Set
from dataclasses import dataclass

from nti_batch.json_object import JsonObject
from nti_batch.models.accepted import MODEL_INDEX, SCHEDULER, SUPPORTED, TEXT_ENCODER, UNET, VAE
from nti_batch.models.rules import Rules, check_fields
from nti_batch.models.source import ModelSource
from nti_batch.models.weight_files import PARTS, read_headers, read_part_headers

_MAX_EMBEDDING_WIDTH = 1 << 15
_MAX_TIME_DIM = 1 << 14
_SIZE_IDS = 6
"""Numbers of Stable Diffusion XL's size conditioning."""

_EDM_MARKERS = ("edm_mean", "edm_std", "edm_vpred.sigma_max")

_MIN_TOKENS = 3
"""Start, a word, end."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Facts about a model that the job needs before it loads the weights."""

    size: tuple[int, int] | None
    """Height and width of the model's training images, in pixels; None if its configuration does not say."""

    pixels_per_latent: int
    """Number of pixels for each latent along one side."""

    latent_channels: int
    max_tokens: int
    """Number of tokens that a prompt is padded or truncated to."""

    embedding_width: int
    """Number of values of a token's embedding."""

    is_xl: bool
    """Whether the model has Stable Diffusion XL's two text encoders, pooled embedding and size conditioning."""

    zeros_for_empty_prompt: bool
    """Whether the embedding of the empty prompt is zero."""

    @classmethod
    def of(cls, source: ModelSource) -> "ModelDescription":
        """Read the description from the model's JSON files, and check them against what the job implements.

        Raises:
            ValueError: If the model is missing or damaged, or its family is not supported.
        """
        source.check()
        if source.folder and (source.folder / "transformer").is_dir():
            raise ValueError(
                f"model {source.name!r} has a transformer instead of a UNet (a flow model such as Stable Diffusion 3 "
                f"or FLUX): {SUPPORTED}"
            )
        unet = _checked(source, "unet", UNET)
        in_channels, out_channels = unet.integer("in_channels", 1, 64), unet.integer("out_channels", 1, 64)
        if in_channels != out_channels:
            raise ValueError(
                f"model {source.name!r} takes {in_channels} channels and gives {out_channels} "
                f"(an inpainting, depth or upscaling model): {SUPPORTED}"
            )
        is_xl = unet.get("addition_embed_type") is not None
        zeros = is_xl and _zeros_for_empty_prompt(source)
        _check_scheduler(source)
        vae = _checked(source, "vae", VAE)
        if vae.integer("latent_channels", 1, 64) != in_channels:
            vae.reject("latent_channels", f"{in_channels}, which the UNet takes")
        if source.vae is not None:
            _check_scale(vae, source.own)
        factor = 2 ** (len(vae.array("block_out_channels")) - 1)
        if source.vae_tiling:
            _check_tiles(vae, factor)
        max_tokens, width = _check_text_encoders(source, unet, is_xl)
        _check_weight_files(source, is_xl)
        return cls(_image_size(unet, factor), factor, in_channels, max_tokens, width, is_xl, zeros)

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """Number of rows and width of an embedding.

        A row is a token; Stable Diffusion XL has one more row for the pooled embedding.
        """
        return self.max_tokens + self.is_xl, self.embedding_width

    def latents(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of the latents of an image, [channels, height, width].

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.
        """
        return self.latent_channels, height // self.pixels_per_latent, width // self.pixels_per_latent

    def image_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the images of a run, in pixels.

        Args:
            height: Height that the user asked for; None for the model's own.
            width: Width that the user asked for; None for the model's own.

        Raises:
            ValueError: If a side is given neither here nor by the model, or is not a positive multiple of
                `pixels_per_latent`.
        """
        own_height, own_width = self.size or (None, None)
        height, width = height or own_height, width or own_width
        if height is None or width is None:
            raise ValueError(
                "the model does not say which image size it was trained with (sample_size in unet/config.json is "
                f"null); give --data.height and --data.width, multiples of {self.pixels_per_latent}"
            )
        if min(height, width) <= 0 or height % self.pixels_per_latent or width % self.pixels_per_latent:
            example = max(self.size) if self.size else 64 * self.pixels_per_latent
            raise ValueError(
                f"an image of height {height} and width {width} does not fit the model's VAE; allowed: multiples of "
                f"{self.pixels_per_latent}, for example {example}"
            )
        return height, width


def _check_tiles(vae: JsonObject, factor: int) -> None:
    """Check that the VAE's own size can be that of its tiles, which overlap by a quarter of it.

    Raises:
        ValueError: If it cannot.
    """
    size = vae.get("sample_size", 32)
    if not isinstance(size, int) or size % (4 * factor):
        raise ValueError(
            f"model.vae_tiling is true, and {vae.file}: sample_size is {size}, allowed: a multiple of {4 * factor}; "
            "leave model.vae_tiling out"
        )


def _check_scale(vae: JsonObject, model: ModelSource) -> None:
    """Check that another VAE scales its latents as the model's own, with which the UNet was trained.

    Raises:
        ValueError: If it does not.
    """
    default = 0.18215
    own = model.read_config("vae", "config.json").get("scaling_factor", default)
    if (found := vae.get("scaling_factor", default)) != own:
        raise ValueError(
            f"{vae.file}: scaling_factor is {found}, allowed: {own}, as the model's own VAE has: give a VAE of the "
            "model's family"
        )


def _checked(source: ModelSource, part: str, rules: Rules) -> JsonObject:
    """Read and check the configuration of a network."""
    config = source.read_config(part, "config.json")
    check_fields(config, rules, SUPPORTED)
    if part in ("unet", "vae"):
        blocks = len(config.array("block_out_channels"))
        for key in rules.keys() - {"sample_size"}:
            if isinstance(values := config.get(key), list) and len(values) != blocks:
                config.reject(key, f"{blocks} values, as block_out_channels has")
    return config


def _image_size(unet: JsonObject, factor: int) -> tuple[int, int] | None:
    """Height and width in pixels."""
    size = unet.get("sample_size")
    match size:
        case int():
            version = re.match(r"0\.(\d+)\.", str(unet.get("_diffusers_version")))
            # as in diffusers: its first releases wrote 32 for Stable Diffusion 1.x, which has 64
            latents = 64 if size < 64 and version and int(version[1]) < 9 else size
            return latents * factor, latents * factor
        case [int(height), int(width)]:
            return height * factor, width * factor
    return None


def _zeros_for_empty_prompt(source: ModelSource) -> bool:
    """Whether Stable Diffusion XL's empty prompt has a zero embedding; the refiner is refused."""
    index = source.read_config("", "model_index.json")
    check_fields(index, MODEL_INDEX, SUPPORTED)
    if index.get("requires_aesthetics_score"):
        raise ValueError(
            f"model {source.name!r} is the refiner of Stable Diffusion XL, which only finishes images (one text "
            f"encoder, an aesthetics score): give the base model; {SUPPORTED}"
        )
    return bool(index.get("force_zeros_for_empty_prompt", True))


def _check_scheduler(source: ModelSource) -> None:
    scheduler = source.read_config("scheduler", "scheduler_config.json")
    check_fields(scheduler, SCHEDULER, SUPPORTED)
    betas = scheduler.get("trained_betas")
    if isinstance(betas, list):
        steps = scheduler.get("num_train_timesteps", 1000)
        if len(betas) != steps:
            scheduler.reject("trained_betas", f"{steps} values, as num_train_timesteps says")
    # each class of schedulers has other defaults
    elif missing := [key for key in ("beta_start", "beta_end", "beta_schedule") if key not in scheduler]:
        raise ValueError(
            f"{scheduler.file}: the key {missing[0]} is missing, so the noise levels of the training are unknown; "
            "allowed: beta_start, beta_end and beta_schedule, or trained_betas"
        )
    if scheduler.get("prediction_type", "epsilon") == "epsilon" and scheduler.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"model {source.name!r} predicts 'epsilon' with a schedule of zero terminal SNR (rescale_betas_zero_snr), "
            "where the noise holds no information about the image; allowed: 'v_prediction'"
        )


def _check_weight_files(source: ModelSource, is_xl: bool) -> None:
    """Check that the local parts of a model have sound files of weights."""
    for part in PARTS[: 3 + is_xl]:
        if source.of_part(part).has_local_weights:
            read_part_headers(source, part)
    if source.checkpoint:
        _check_markers(source, {header.name for header in read_headers([source.checkpoint])})


def _check_markers(source: ModelSource, names: Set[str]) -> None:
    """Check the empty weights by which the makers of a single file say how it was trained."""
    if marker := next((name for name in sorted(names) if name in _EDM_MARKERS), None):
        raise ValueError(f"model {source.name!r} was trained as EDM models are ({marker!r}): {SUPPORTED}")
    scheduler = source.read_config("scheduler", "scheduler_config.json")
    if "v_pred" in names and scheduler.get("prediction_type") != "v_prediction":
        raise ValueError(
            f"model {source.name!r} says that it predicts v ('v_pred'), but {scheduler.file} says 'epsilon': give a "
            "--model.config whose prediction_type is 'v_prediction'"
        )
    if "ztsnr" in names and not scheduler.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"model {source.name!r} says that its schedule has zero terminal SNR ('ztsnr'), but {scheduler.file} does "
            "not: give a --model.config whose rescale_betas_zero_snr is true"
        )


def _check_text_encoders(source: ModelSource, unet: JsonObject, is_xl: bool) -> tuple[int, int]:
    """Check the text encoders, and that the UNet takes their embeddings.

    Returns:
        Number of tokens of a prompt, and width of an embedding.
    """
    encoders = [_checked(source, f"text_encoder{number}", TEXT_ENCODER) for number in ("", "_2")[: 1 + is_xl]]
    tokens = [_max_tokens(source, encoder, number) for encoder, number in zip(encoders, ("", "_2"), strict=False)]
    width = sum(encoder.integer("hidden_size", 1, _MAX_EMBEDDING_WIDTH) for encoder in encoders)
    dims = unet.value("cross_attention_dim")
    if any(dim != width for dim in (dims if isinstance(dims, list) else [dims])):
        unet.reject("cross_attention_dim", f"{width}, the width of the text encoders' embeddings")
    if is_xl:
        pooled = encoders[1].integer("projection_dim", 1, width)
        inputs = pooled + _SIZE_IDS * unet.integer("addition_time_embed_dim", 1, _MAX_TIME_DIM)
        if unet.value("projection_class_embeddings_input_dim") != inputs:
            unet.reject(
                "projection_class_embeddings_input_dim",
                f"{inputs}, for a pooled embedding of {pooled} values and {_SIZE_IDS} numbers of an image's size",
            )
    return min(tokens), width


def _max_tokens(source: ModelSource, encoder: JsonObject, number: str) -> int:
    """Number of tokens of a prompt: the tokenizer's, and at most the number of positions of the text encoder.

    Files that other tools write lack the tokenizer's number, or have 10^30.
    """
    positions = encoder.get("max_position_embeddings", 77)
    assert isinstance(positions, int)
    tokenizer = source.read_config(f"tokenizer{number}", "tokenizer_config.json")
    if tokenizer.get("model_max_length") is None:
        return positions
    if (length := tokenizer.number("model_max_length")) < _MIN_TOKENS:
        tokenizer.reject("model_max_length", f"a number from {_MIN_TOKENS}")
    return int(min(positions, length))
