"""Attention processor of a diffusers UNet that replaces attention maps as prompt-to-prompt does."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from nti_batch.diffusion.prompt_to_prompt import StepControl

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


class ControlledAttention:
    """Attention processor of one layer at one timestep; where nothing is controlled, the layer's own processor runs.

    The rows of a call are the rows of the control.
    """

    def __init__(self, control: StepControl, original: Callable[..., Tensor]) -> None:
        """Stand in for a processor.

        Args:
            control: The control of the batch at this timestep.
            original: The layer's own processor.
        """
        self.control, self.original = control, original

    def __call__(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend, [rows, pixels, channels]; without `encoder_hidden_states` to the pixels themselves."""
        pixels = hidden_states.shape[1]
        if encoder_hidden_states is None:
            self_rows = self.control.self_rows_of_layer(pixels)
            if self_rows is not None:
                return _self_attention(attn, hidden_states, self_rows)
        elif self.control.needs_maps(pixels):
            return self._cross_attention(attn, hidden_states, encoder_hidden_states)
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    def _cross_attention(self, attn: "Attention", hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        query = _heads(attn, attn.to_q(hidden_states))
        key, value = (_heads(attn, layer(encoder_hidden_states)) for layer in (attn.to_k, attn.to_v))
        # float32 as in the fused kernels, so that a source has the latents that it has without control
        maps = self.control.cross_attention((query.float() @ key.float().mT * attn.scale).softmax(-1))
        return _project(attn, (maps @ value.float()).to(value.dtype))


def _self_attention(attn: "Attention", hidden_states: Tensor, rows: Tensor) -> Tensor:
    """Self-attention with the maps of other rows, by their queries and keys, so that no map is stored."""
    query, key, value = (_heads(attn, layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v))
    return _project(attn, F.scaled_dot_product_attention(query[rows], key[rows], value, scale=attn.scale))


def _heads(attn: "Attention", projected: Tensor) -> Tensor:
    """[rows, n, channels] to [rows, heads, n, channels / heads]."""
    heads: int = attn.heads
    return projected.view(*projected.shape[:2], heads, -1).transpose(1, 2)


def _project(attn: "Attention", attended: Tensor) -> Tensor:
    """Undo `_heads`, and apply the layer's last projection."""
    projected: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
    return projected
