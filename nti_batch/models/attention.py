"""Control of a diffusers UNet: an attention processor, and features of the decoder that rows take from others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from nti_batch.diffusion.prompt_to_prompt import StepControl
from nti_batch.diffusion.self_attention import SourceRows

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention


class ControlledAttention:
    """Attention processor of one layer in one evaluation; where nothing is controlled, the layer's own processor runs.

    The rows of a call are the rows of the control.
    """

    def __init__(self, control: StepControl, original: Callable[..., Tensor], position: float = 0.0) -> None:
        """Stand in for a processor.

        Args:
            control: The control of the batch in this evaluation.
            original: The layer's own processor.
            position: Place of a self-attention layer from `self_attention_positions`.
        """
        self.control, self.original, self.position = control, original, position

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
            rows = self.control.self_attention_of_layer(pixels, self.position)
            if rows is not None:
                return _self_attention(attn, hidden_states, rows)
        elif self.control.needs_maps(pixels):
            return self._cross_attention(attn, hidden_states, encoder_hidden_states)
        elif self.control.shows(pixels):
            self.control.show(_maps(attn, hidden_states, encoder_hidden_states))
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    def _cross_attention(self, attn: "Attention", hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        value = _heads(attn, attn.to_v(encoder_hidden_states))
        maps = self.control.cross_attention(_maps(attn, hidden_states, encoder_hidden_states))
        return _project(attn, (maps @ value.float()).to(value.dtype))


def self_attention_positions(unet: "UNet2DConditionModel") -> dict[str, float]:
    """Position k / n of each self-attention layer, by its processor's name: k, from 0, in the order of evaluation."""
    stages = ("down_blocks.", "mid_block.", "up_blocks.")
    names = [
        name
        for stage in stages
        for name in unet.attn_processors
        if name.startswith(stage) and not unet.get_submodule(name.removesuffix(".processor")).is_cross_attention
    ]
    return {name: k / len(names) for k, name in enumerate(names)}


@contextmanager
def features_from(unet: "UNet2DConditionModel", rows: Tensor | None) -> Iterator[None]:
    """Give each row of a batch the features of another within a `with` block, if `rows` is given.

    As in the code of plug-and-play, features are what a residual block adds to its input: in Stable Diffusion the fifth
    of the decoder's twelve, elsewhere the one that a third of them precedes.
    """
    if rows is None:
        yield
        return
    blocks = [resnet for block in unet.up_blocks for resnet in block.resnets]
    hook = blocks[len(blocks) // 3].conv2.register_forward_hook(lambda _, __, features: features[rows])
    try:
        yield
    finally:
        hook.remove()


def _maps(attn: "Attention", hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """Cross-attention maps of a layer, [rows, heads, pixels, tokens].

    They are float32 as in the fused kernels, so that a source has the latents that it has without control.
    """
    query, key = _heads(attn, attn.to_q(hidden_states)), _heads(attn, attn.to_k(encoder_hidden_states))
    maps: Tensor = (query.float() @ key.float().mT * attn.scale).softmax(-1)
    return maps


def _self_attention(attn: "Attention", hidden_states: Tensor, rows: SourceRows) -> Tensor:
    """Self-attention with the queries, keys and values of other rows, so that no map is stored."""
    query, key, value = (_heads(attn, layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v))
    attended = F.scaled_dot_product_attention(
        query[rows.query], key[rows.key], value[rows.value], rows.mask, scale=attn.scale
    )
    return _project(attn, attended)


def _heads(attn: "Attention", projected: Tensor) -> Tensor:
    """[rows, n, channels] to [rows, heads, n, channels / heads]."""
    heads: int = attn.heads
    return projected.view(*projected.shape[:2], heads, -1).transpose(1, 2)


def _project(attn: "Attention", attended: Tensor) -> Tensor:
    """Undo `_heads`, and apply the layer's last projection."""
    projected: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
    return projected
