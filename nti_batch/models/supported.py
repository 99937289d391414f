"""Facts about a model that the job needs before it loads the weights, and the models that it refuses."""

from dataclasses import dataclass

from nti_batch.models.source import ModelJson, ModelSource

SUPPORTED = "nti_batch supports the text-to-image models of Stable Diffusion 1.x, 2.x and XL"


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


def _read_unet_config(source: ModelSource) -> ModelJson:
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


def _read_vae_config(source: ModelSource) -> ModelJson:
    vae = source.read_config("vae", "config.json")
    if vae.get("latents_mean"):
        raise ValueError(
            f"model {source.name!r} shifts its latents by a mean of each channel (like Playground 2.5): {SUPPORTED}"
        )
    return vae


def _is_xl(source: ModelSource, unet: ModelJson) -> bool:
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
