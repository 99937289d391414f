"""The frozen networks of Stable Diffusion 1.x, 2.x and XL as functions of tensors.

`source` reads the settings of a checkpoint, `weights` loads its weights, `text_encoders` encodes prompts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nti_batch.diffusion.alignment import TokenizedPrompt
from nti_batch.diffusion.host import upload
from nti_batch.diffusion.pooled_embedding import split_pooled
from nti_batch.diffusion.prompt_to_prompt import StepControl
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.models.attention import ControlledAttention, features_from, self_attention_positions
from nti_batch.models.fingerprint import model_fingerprint
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.supported import ModelDescription
from nti_batch.models.text_encoders import TextEncoder
from nti_batch.models.weights import load_network, load_scheduler, load_text_encoders, load_unet

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

LEAST_ALPHA_CUMPROD = 2.0**-64
"""Stands for 0, with which a schedule of zero terminal SNR ends, so that ratios of levels are defined.

Its root is far below the rounding error of float32."""


class StableDiffusion(nn.Module):
    """Frozen text encoders, VAE and UNet. Latents, embeddings and noise are float32 whatever the UNet's precision.

    An embedding is [tokens, dim]; of Stable Diffusion XL [tokens + 1, dim], with the pooled one as its last row.
    """

    def __init__(
        self, text: TextEncoder, vae: "AutoencoderKL", unet: "UNet2DConditionModel", scheduler: "DDIMScheduler"
    ) -> None:
        """Take the parts and freeze them; `load` makes them.

        Args:
            text: Tokenizers and text encoders, float32.
            vae: The VAE, float32.
            unet: The UNet, in any precision.
            scheduler: The model's own: its noise levels, the UNet's prediction type, and the spacing of timesteps.
        """
        super().__init__()
        self.text, self.vae, self.unet, self.scheduler = text, vae, unet, scheduler
        self.source: ModelSource | None = None
        """Place that `load` has loaded them from."""

        self.pixels_per_latent = 2 ** (len(vae.config.block_out_channels) - 1)
        self.alphas_cumprod: Tensor
        """Noise levels of the training, [1000]."""
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.float().clamp(min=LEAST_ALPHA_CUMPROD))
        self.requires_grad_(False).eval()
        self._self_attention_positions = self_attention_positions(unet)
        self.vae.to(memory_format=torch.channels_last)  # encodes faster so; the UNet gains nothing

    @classmethod
    def load(cls, source: ModelSource, precision: Precision = "float32") -> "StableDiffusion":
        """Load all parts; a model in a folder needs no network access.

        Raises:
            ValueError: If the model is missing, not supported, or has pickled weights only.
        """
        description = ModelDescription.of(source)
        text = load_text_encoders(source, description)
        vae = load_network(source, "vae", torch.float32)
        if source.vae_tiling:
            vae.enable_slicing()
            vae.enable_tiling()
        networks = cls(
            text,
            vae,
            load_unet(source, text, getattr(torch, precision)),
            load_scheduler(source),
        )
        networks.source = source
        return networks

    @cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model's files; None if it is not known."""
        return model_fingerprint(self.source) if self.source else None

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.alphas_cumprod.device

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled embedding, the last row of every embedding; 0 if there is none."""
        return self.text.pooled_dim

    def schedule(self, num_steps: int) -> DDIMSchedule:
        """DDIM's levels, chosen by `timestep_spacing` of the model's scheduler.

        `trailing`, which models with zero terminal SNR use, starts at the very last timestep and ends at the level that
        the configuration names, as diffusers' DDIM does.

        Any other value, and none, is `leading` with an offset of 1, which ends at the first level of the training, as
        Stable Diffusion's pipelines choose it. The offset is not read from the model, since those pipelines do not read
        it. With an offset of 0, or with `linspace`, the last step would be the identity.

        Raises:
            ValueError: If `num_steps` is below 1, or the training has not more timesteps.
        """
        training = len(self.alphas_cumprod)
        if not 1 <= num_steps < training:
            raise ValueError(f"num_steps is {num_steps}, allowed: 1 to {training - 1}")
        levels = self.alphas_cumprod.cpu()
        if self.scheduler.config.timestep_spacing == "trailing":
            timesteps = [round(i * training / num_steps) - 1 for i in range(num_steps, 0, -1)]
            final = self.scheduler.final_alpha_cumprod.item()
        else:
            timesteps = [i * (training // num_steps) + 1 for i in reversed(range(num_steps))]
            final = levels[0].item()
        prediction_type = self.scheduler.config.prediction_type
        return DDIMSchedule.from_training(levels, timesteps, final, prediction_type).to(self.device)

    @torch.no_grad()
    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """Encode prompts, padded and truncated, to embeddings, [prompts, tokens, dim]."""
        return self.text.embed_prompts(prompts)

    def truncates(self, prompt: str) -> bool:
        """Whether the text encoders read only the beginning of a prompt."""
        return self.text.truncates(prompt)

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Find the words of a prompt among its tokens."""
        return self.text.tokenize(prompt)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode uint8 pixels, [batch, 3, height, width], to latents: the posterior's mean, scaled."""
        posterior = self.vae.encode(upload(pixels, self.device) / 127.5 - 1).latent_dist
        latents: Tensor = posterior.mean * self.vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents to images, [batch, 3, height, width] in [0, 1]."""
        images: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (images / 2 + 0.5).clamp(0, 1)

    def predict(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor, optimize_pooled: bool = False) -> Tensor:
        """Evaluate the UNet as a `Predictor`.

        Args:
            latents: z_t, [batch, channels, height, width].
            timesteps: Timestep of each image, [batch].
            embeddings: Text embeddings, [batch, tokens, dim].
            optimize_pooled: Whether the pooled row gets a gradient, too. No solver changes a row without one.

        Returns:
            e or v, as the schedule's `prediction_type` says, float32 in the shape of `latents`.
        """
        dtype, condition = self.unet.dtype, None
        if self.text.pooled_dim:
            embeddings, pooled = split_pooled(embeddings, self.text.pooled_dim)
            pooled = pooled if optimize_pooled else pooled.detach()
            condition = {"text_embeds": pooled.to(dtype), "time_ids": self._time_ids(latents)}
        prediction: Tensor = self.unet(
            latents.to(dtype), timesteps, embeddings.to(dtype), added_cond_kwargs=condition, return_dict=False
        )[0].float()
        return prediction

    def _time_ids(self, latents: Tensor) -> Tensor:
        """Size conditioning of Stable Diffusion XL, [batch, 6]: original size, corner of the crop, target size."""
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        ids = torch.zeros(len(latents), 6, dtype=torch.int64, device=latents.device)
        # filled on the device: a CUDA graph cannot capture a copy from the host
        ids[:, 0::4], ids[:, 1::4] = height, width
        return ids

    def cross_attention_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Heights and widths of the UNet's cross-attention layers for latents of this size."""
        blocks = self.unet.down_blocks
        levels = [k for k, block in enumerate(blocks) if getattr(block, "has_cross_attention", False)]
        if getattr(self.unet.mid_block, "has_cross_attention", False):
            levels.append(len(blocks) - 1)
        return sorted({(-(-height // 2**k), -(-width // 2**k)) for k in levels})

    @contextmanager
    def controlled(self, control: StepControl) -> Iterator[None]:
        """Put the UNet's attention and features under control within a `with` block."""
        before, positions = self.unet.attn_processors, self._self_attention_positions
        self.unet.set_attn_processor(
            {name: ControlledAttention(control, own, positions.get(name, 0.0)) for name, own in before.items()}
        )
        try:
            with features_from(self.unet, control.self_attention.feature_rows):
                yield
        finally:
            self.unet.set_attn_processor(before)
