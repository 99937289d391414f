"""The attention of a diffusers UNet with the maps of prompt-to-prompt, on the interface of its attention processors."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from nti_batch.diffusion.prompt_to_prompt import AttentionControl

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


class ControlledAttention:
    """Attention processor of one layer: the layer's own, but where and when the control has to do with its maps.

    The rows of a call are those of the control.
    """

    def __init__(self, control: AttentionControl, original: Callable[..., Tensor]) -> None:
        """Stand in for a processor.

        Args:
            control: Of the batch.
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
        control, pixels = self.control, hidden_states.shape[1]
        if encoder_hidden_states is None:
            if control.self_rows is not None and pixels <= control.self_pixels:
                return _self_attention(attn, hidden_states, control.self_rows)
        elif control.cross is not None or control.collects(pixels):
            return self._cross_attention(attn, hidden_states, encoder_hidden_states)
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    def _cross_attention(self, attn: "Attention", hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        query = _heads(attn, attn.to_q(hidden_states))
        key, value = (_heads(attn, layer(encoder_hidden_states)) for layer in (attn.to_k, attn.to_v))
        # float32 as in the fused kernels, so that a source comes out as without control
        maps = self.control.replace((query.float() @ key.float().mT * attn.scale).softmax(-1))
        if self.control.collects(hidden_states.shape[1]):
            self.control.collect(maps)
        return _project(attn, (maps @ value.float()).to(value.dtype))


def _self_attention(attn: "Attention", hidden_states: Tensor, rows: Tensor) -> Tensor:
    """Self-attention with the maps of other rows: their queries and keys, so that no map is ever made."""
    query, key, value = (_heads(attn, layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v))
    return _project(attn, F.scaled_dot_product_attention(query[rows], key[rows], value, scale=attn.scale))


def _heads(attn: "Attention", projected: Tensor) -> Tensor:
    """[rows, n, channels] to [rows, heads, n, channels / heads]."""
    heads: int = attn.heads
    return projected.view(*projected.shape[:2], heads, -1).transpose(1, 2)


def _project(attn: "Attention", attended: Tensor) -> Tensor:
    """The opposite of `_heads`, and the layer's last projection."""
    projected: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
    return projected
