"""Records the attention of the finest cross-attention layers of a UNet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


class AttentionRecorder:
    """Attention processor that keeps its attention map."""

    attention_map: Tensor
    """Mean over heads, [batch, pixels, tokens]."""

    def __call__(self, attn: "Attention", hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object) -> Tensor:
        """Compute plain attention; `_` takes the optional masks that a UNet passes."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        weights = attn.get_attention_scores(query, key)
        self.attention_map = weights.unflatten(0, (-1, attn.heads)).mean(1)
        return attn.to_out[0](attn.batch_to_head_dim(weights @ value))


@contextmanager
def record_finest_cross_attention(unet: "UNet2DConditionModel") -> Iterator[list[AttentionRecorder]]:
    """Put a recorder into each cross-attention layer with the resolution of the latents; remove it at the end."""
    before, recorders = dict(unet.attn_processors), []
    for block in (unet.down_blocks[0], unet.up_blocks[-1]):
        for layer in block.attentions:
            recorders.append(AttentionRecorder())
            layer.transformer_blocks[0].attn2.set_processor(recorders[-1])
    yield recorders
    unet.set_attn_processor(before)
