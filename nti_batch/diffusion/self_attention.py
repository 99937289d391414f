"""What an edit takes of its source in self-attention: by prompt-to-prompt, MasaCtrl or plug-and-play features.

Q, K, V are a source's queries, keys and values in a self-attention layer, f its features; Q*, K*, V* and f* are those
of its edit. In a range of the steps and of the layers, the edit has

    softmax(Q  K^T / sqrt(d)) V*    prompt-to-prompt and plug-and-play: the map of the source
    softmax(Q* K^T / sqrt(d)) V     MasaCtrl: the edit looks for its content in the source (`foreground`: in a part)
    f* <- f                         plug-and-play, in one residual block of the decoder and a range of its own

Prompt-to-prompt controls the evaluations of the prompts alone. The others control those of the null embeddings too,
where Q, K, V and f are those of the source with its own null embedding.

Cao et al., "MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and Editing", 2023,
https://arxiv.org/abs/2304.08465.
Tumanyan et al., "Plug-and-Play Diffusion Features for Text-Driven Image-to-Image Translation", 2022,
https://arxiv.org/abs/2211.12572.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nti_batch.diffusion.edit_control import EditControl
from nti_batch.diffusion.rows import Rows

SELF_PIXELS = 1024
"""Prompt-to-prompt replaces maps of layers with no more pixels even where they are as fine as the latents."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceRows:
    """The row whose queries, keys and values each row takes in one layer, each [rows]."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    """Whether pixel i of a row may attend to pixel j, bool [rows, 1, i, j]; None if it always may."""

    def masked(self, mask: Tensor | None) -> "SourceRows":
        """Apply a mask to the rows that take values."""
        if mask is None:
            return self
        own = self.value == torch.arange(len(self.value), device=self.value.device)
        return replace(self, mask=mask | own[:, None, None, None])


@dataclass(frozen=True, slots=True, eq=False)
class SelfAttentionControl:
    """The control of self-attention and features of one batch. All tensors are on the CPU, which decides by layer."""

    rows: Rows
    max_pixels: int
    """Largest number of pixels of a layer in which prompt-to-prompt replaces maps."""

    by_maps: Tensor
    """Whether a row is of prompt-to-prompt, bool [rows]."""

    takes_values: Tensor
    """Whether a row takes keys and values, as in MasaCtrl, and not queries and keys, bool [rows]."""

    steps: Tensor
    """First step in which a row takes of its source, and first step in which it no longer does, [rows, 2]."""

    layers: Tensor
    """First layer in which a row takes of its source, and first layer in which it no longer does, as shares of the
    number of layers, [rows, 2]."""

    feature_steps: Tensor
    """The two steps for the features, [rows, 2]."""

    @classmethod
    def of(
        cls, controls: Sequence[EditControl], rows: Rows, num_steps: int, latent_size: tuple[int, int]
    ) -> "SelfAttentionControl":
        """Stack the controls of the rows."""
        return cls(
            rows=rows,
            max_pixels=max(math.prod(latent_size) - 1, SELF_PIXELS),
            by_maps=torch.tensor([row.attention == "prompt-to-prompt" for row in controls]),
            takes_values=torch.tensor([row.attention == "masactrl" for row in controls]),
            steps=torch.tensor([[int(share * num_steps) for share in row.self_replace_steps] for row in controls]),
            layers=torch.tensor([row.self_replace_layers for row in controls], dtype=torch.float64),
            feature_steps=torch.tensor([[int(share * num_steps) for share in row.feature_steps] for row in controls]),
        )

    def at(self, step: int) -> "SelfAttentionStep":
        """Control of the evaluation of the prompts after so many steps, 0 to T - 1."""
        feature_rows = self._source_rows(_is_in(step, self.feature_steps))
        return SelfAttentionStep(self, _is_in(step, self.steps), feature_rows)

    def of_layer(self, active: Tensor, pixels: int, position: float) -> SourceRows | None:
        """The rows that `active` rows take in a layer; None if each takes its own."""
        in_layer = active & _is_in(position, self.layers) & (~self.by_maps | (pixels <= self.max_pixels))
        if (key := self._source_rows(in_layer)) is None:
            return None
        own = torch.arange(len(in_layer), device=key.device)
        takes_values = self.takes_values.to(key.device)
        return SourceRows(torch.where(takes_values, own, key), key, torch.where(takes_values, key, own))

    def _source_rows(self, active: Tensor) -> Tensor | None:
        """The source's row of each active row, and the own one of the others; None if none is active."""
        if not active.any():
            return None
        source_of = self.rows.source_of
        return torch.where(active.to(source_of.device), source_of, torch.arange(len(active), device=source_of.device))


@dataclass(frozen=True, slots=True, eq=False)
class SelfAttentionStep:
    """The control of self-attention and features in one evaluation."""

    control: SelfAttentionControl
    active: Tensor
    """Whether a row takes of its source in any layer, bool [rows]."""

    feature_rows: Tensor | None
    """The row whose features each row takes, [rows]; None if each takes its own."""

    def of_null(self) -> "SelfAttentionStep":
        """Control of the evaluation of the null embeddings."""
        return replace(self, active=self.active & ~self.control.by_maps)

    @property
    def is_active(self) -> bool:
        """Whether any row takes anything of its source."""
        return self.feature_rows is not None or bool(self.active.any())

    def of_layer(self, pixels: int, position: float) -> SourceRows | None:
        """Rows to attend with in one layer; None if each row attends with its own.

        Args:
            pixels: Number of the layer's pixels.
            position: k / n of layer k, from 0, of n self-attention layers in the order of evaluation.
        """
        return self.control.of_layer(self.active, pixels, position)


def _is_in(value: float, ranges: Tensor) -> Tensor:
    """Whether start <= value < end of each range [rows, 2], bool [rows]."""
    return (ranges[:, 0] <= value) & (value < ranges[:, 1])
