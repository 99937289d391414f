"""The frozen networks of Stable Diffusion 1.x and 2.x, from a folder in diffusers' layout or from the hub.

The only file that imports diffusers and, but for the networks of `learned_scores`, transformers, and only when weights
are loaded: a folder's settings are read from its JSON files, so that a model that cannot be used is refused before
anything is imported.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from nti_batch.diffusion.alignment import TokenizedPrompt
from nti_batch.diffusion.controlled_attention import ControlledAttention
from nti_batch.diffusion.prompt_to_prompt import AttentionControl
from nti_batch.diffusion.schedule import DDIMSchedule

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

EMBEDDED_MODEL = Path(__file__).parent / "demo" / "model"
Precision = Literal["float32", "bfloat16", "float16"]
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_Json = dict[str, str | int | float | bool | list[int] | list[str] | None]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from."""

    name: str
    """'demo' for the embedded model, a folder in diffusers' layout, or a hub id such as 'user/model'."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    variant: str | None = None
    """Weights' variant, such as 'fp16' for files named `*.fp16.safetensors`."""

    @property
    def folder(self) -> Path | None:
        """The local folder, None for a hub id."""
        if self.name == "demo":
            return EMBEDDED_MODEL
        return Path(self.name) if Path(self.name).is_dir() else None

    @property
    def location(self) -> str:
        """What diffusers' and transformers' `from_pretrained` take."""
        return str(self.folder or self.name)

    def read_config(self, part: str, file: str) -> _Json:
        """A part's settings, without its weights.

        Raises:
            ValueError: If there is no such model, or it lacks the part.
        """
        if self.folder:
            path = self.folder / part / file
            if not path.is_file():
                raise ValueError(
                    f"model {self.name!r} has no {part}/{file}: a folder in diffusers' layout with "
                    f"{', '.join(_PARTS)} is needed"
                )
        elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.name):
            raise ValueError(
                f"model {self.name!r} is no folder: give a folder in diffusers' layout, a hub id such as 'user/model', "
                "or 'demo' for the embedded model"
            )
        else:
            from huggingface_hub import hf_hub_download

            try:
                path = Path(hf_hub_download(self.name, f"{part}/{file}", revision=self.revision))
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"model {self.name!r} is no folder here, and the hub gave no {part}/{file}: {reason}"
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

    @classmethod
    def of(cls, source: ModelSource) -> "ModelDescription":
        """Read it from the model's JSON files.

        Raises:
            ValueError: If the model is missing, or of a family that is not supported.
        """
        if source.folder and (source.folder / "transformer").is_dir():
            raise ValueError(
                f"model {source.name!r} has a transformer instead of a UNet (a flow model such as Stable Diffusion 3 "
                "or FLUX): supported are Stable Diffusion 1.x and 2.x"
            )
        unet = source.read_config("unet", "config.json")
        if unet.get("addition_embed_type") == "text_time":
            raise ValueError(
                f"model {source.name!r} is a Stable Diffusion XL: supported are Stable Diffusion 1.x and 2.x"
            )
        if unet["in_channels"] != unet["out_channels"]:
            raise ValueError(
                f"model {source.name!r} takes {unet['in_channels']} channels and gives {unet['out_channels']} "
                "(an inpainting, depth or upscaling model): supported are the text-to-image models of "
                "Stable Diffusion 1.x and 2.x"
            )
        prediction = source.read_config("scheduler", "scheduler_config.json").get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"model {source.name!r} predicts {prediction!r}, allowed: 'epsilon', 'v_prediction'")
        channels = source.read_config("vae", "config.json")["block_out_channels"]
        assert isinstance(channels, list)
        factor = 2 ** (len(channels) - 1)
        size, latent_channels = unet["sample_size"], unet["in_channels"]
        assert isinstance(size, int) and isinstance(latent_channels, int)
        return cls(size=size * factor, pixels_per_latent=factor, latent_channels=latent_channels)

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


def embedding_shape(source: ModelSource) -> tuple[int, int]:
    """Tokens and width of an embedding, from the model's JSON files.

    Raises:
        ValueError: If the model lacks one of them.
    """
    tokens = source.read_config("tokenizer", "tokenizer_config.json")["model_max_length"]
    dim = source.read_config("text_encoder", "config.json")["hidden_size"]
    assert isinstance(tokens, int) and isinstance(dim, int)
    return tokens, dim


class StableDiffusion(nn.Module):
    """Frozen text encoder, VAE and UNet. Latents, embeddings and noise are float32 whatever the UNet's precision."""

    def __init__(
        self,
        tokenizer: "CLIPTokenizer",
        text_encoder: "CLIPTextModel",
        vae: "AutoencoderKL",
        unet: "UNet2DConditionModel",
        alphas_cumprod: Tensor,
        prediction_type: str,
    ) -> None:
        """Take the parts and freeze them; `load` makes them.

        Args:
            tokenizer: Of the text encoder.
            text_encoder: float32.
            vae: float32.
            unet: In any precision.
            alphas_cumprod: Noise levels of the training, [1000].
            prediction_type: What the UNet predicts, 'epsilon' or 'v_prediction'.
        """
        super().__init__()
        self.tokenizer, self.text_encoder, self.vae, self.unet = tokenizer, text_encoder, vae, unet
        self.prediction_type = prediction_type
        self.alphas_cumprod: Tensor
        self.register_buffer("alphas_cumprod", alphas_cumprod.float())
        self.requires_grad_(False).eval()
        self.vae.to(memory_format=torch.channels_last)  # encodes faster so; the UNet gains nothing

    @classmethod
    def load(cls, source: ModelSource, precision: Precision = "float32") -> "StableDiffusion":
        """Load all parts; nothing is fetched when the model is a folder.

        Raises:
            ValueError: If the model is missing, not supported, or has pickled weights only.
        """
        ModelDescription.of(source)
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.utils import logging as diffusers_logging
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils import logging as transformers_logging

        # from_pretrained logs that accelerate is missing, which only loading without a spare copy would need
        diffusers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        where = {"revision": source.revision, "local_files_only": source.folder is not None}
        weights = {**where, "variant": source.variant, "use_safetensors": True, "output_loading_info": True}
        try:
            unet, unet_info = UNet2DConditionModel.from_pretrained(
                source.location, subfolder="unet", torch_dtype=getattr(torch, precision), **weights
            )
            vae, vae_info = AutoencoderKL.from_pretrained(
                source.location, subfolder="vae", torch_dtype=torch.float32, **weights
            )
            text_encoder, text_encoder_info = CLIPTextModel.from_pretrained(
                source.location, subfolder="text_encoder", dtype=torch.float32, **weights
            )
            tokenizer = CLIPTokenizer.from_pretrained(source.location, subfolder="tokenizer", **where)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"model {source.name!r} does not load: {reason} Only safetensors weights are taken, "
                "since a pickled checkpoint (.bin, .ckpt) can run any code: convert it with diffusers' "
                "`save_pretrained(..., safe_serialization=True)`, and check --model.variant"
            ) from error
        infos = {"unet": unet_info, "vae": vae_info, "text_encoder": text_encoder_info}
        for part, info in infos.items():
            if missing := sorted(info["missing_keys"]):
                raise ValueError(
                    f"model {source.name!r} is incomplete: {part} lacks {len(missing)} weights, "
                    f"the first is {missing[0]!r}; fetch or save it anew"
                )
        scheduler = DDIMScheduler.from_config(source.read_config("scheduler", "scheduler_config.json"))
        return cls(tokenizer, text_encoder, vae, unet, scheduler.alphas_cumprod, scheduler.config.prediction_type)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.alphas_cumprod.device

    def schedule(self, num_steps: int) -> DDIMSchedule:
        """DDIM's levels as Stable Diffusion's pipelines choose them: `leading` spacing with an offset of 1.

        The offset is not read from the model, as those pipelines don't: with 0 the last step would be the identity.

        Raises:
            ValueError: If the training has fewer timesteps.
        """
        training = len(self.alphas_cumprod)
        if not 1 <= num_steps < training:
            raise ValueError(f"num_steps is {num_steps}, allowed: 1 to {training - 1}")
        timesteps = [i * (training // num_steps) + 1 for i in reversed(range(num_steps))]
        levels = self.alphas_cumprod.cpu()
        return DDIMSchedule.from_training(levels, timesteps, levels[0].item()).to(self.device)

    @torch.no_grad()
    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """Last hidden state of the text encoder, [prompts, tokens, dim]; prompts are padded and truncated."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        embeddings: Tensor = self.text_encoder(tokens.to(self.device)).last_hidden_state
        return embeddings

    def truncates(self, prompt: str) -> bool:
        """Whether the text encoder reads only the beginning of a prompt."""
        return len(self.tokenizer(prompt, verbose=False).input_ids) > self.tokenizer.model_max_length

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Where the words of a prompt are among its tokens."""
        tokens = self.tokenizer(prompt, padding="max_length", truncation=True, return_offsets_mapping=True)
        return TokenizedPrompt.of(prompt, tokens.offset_mapping)

    @torch.no_grad()
    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """uint8 pixels, [batch, 3, height, width], to latents: the posterior's mean, scaled."""
        posterior = self.vae.encode(pixels.to(self.device) / 127.5 - 1).latent_dist
        latents: Tensor = posterior.mean * self.vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents to pictures, [batch, 3, height, width] in [0, 1]."""
        pictures: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (pictures / 2 + 0.5).clamp(0, 1)

    def predict_noise(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """The UNet as a `NoisePredictor`: e, whatever the model predicts.

        e = v sqrt(abar_t) + z_t sqrt(1 - abar_t)      for v-prediction
        """
        dtype = self.unet.dtype
        predicted = self.unet(latents.to(dtype), timesteps, embeddings.to(dtype), return_dict=False)[0].float()
        if self.prediction_type == "epsilon":
            return predicted
        abar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return abar.sqrt() * predicted + (1 - abar).sqrt() * latents

    def cross_attention_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Heights and widths of the UNet's cross-attention layers for latents of this size."""
        blocks = self.unet.down_blocks
        levels = [k for k, block in enumerate(blocks) if getattr(block, "has_cross_attention", False)]
        if getattr(self.unet.mid_block, "has_cross_attention", False):
            levels.append(len(blocks) - 1)
        return sorted({(-(-height // 2**k), -(-width // 2**k)) for k in levels})

    @contextmanager
    def controlled(self, control: AttentionControl) -> Iterator[None]:
        """Put the UNet's attention under control for as long as is needed."""
        before = self.unet.attn_processors
        self.unet.set_attn_processor({name: ControlledAttention(control, own) for name, own in before.items()})
        try:
            yield
        finally:
            self.unet.set_attn_processor(before)


def random_unet(precision: Precision, device: torch.device) -> "UNet2DConditionModel":
    """The UNet of Stable Diffusion 1.5 in its full size with random weights: what time and memory are measured on."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.set_default_dtype(getattr(torch, precision))  # or a float32 copy would count as a bfloat16 network's memory
    try:
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768).to(device)
    finally:
        torch.set_default_dtype(torch.float32)
