"""Masks of mask-guided MasaCtrl: an edit's object attends to its source's object, its background to the background.

Cao et al., "MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image Synthesis and Editing", 2023,
https://arxiv.org/abs/2304.08465, section 3.3. Pixel i of an edit attends to those pixels j of its source with

    F*_i = F_j      F is 1 where the attention of the foreground words is at least a threshold, else 0

The attention, summed over words and over the layers of one resolution that this evaluation of the prompts has passed,
goes from 0 to 1 in each map. Before the first such layer there is no mask. An evaluation of null embeddings has the
masks of the prompts' evaluation in each layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.diffusion.rows import Rows


@dataclass(frozen=True, slots=True, eq=False)
class ForegroundControl:
    """The words and thresholds of one batch."""

    rows: Rows
    words: Tensor
    """1 for the foreground words of source and edit, 0 for other tokens, [rows, 2, tokens]."""

    threshold: Tensor
    """Threshold of the attention, [rows]."""

    map_size: tuple[int, int]
    """Height and width of the maps."""

    layer_sizes: Sequence[tuple[int, int]]
    """Heights and widths of the network's layers."""


class ForegroundMasks:
    """The masks of one step."""

    def __init__(self, control: ForegroundControl) -> None:
        """Start without maps."""
        self.control = control
        self._maps: Tensor | None = None
        self._masks: dict[float, Tensor | None] = {}

    def collect(self, maps: Tensor) -> None:
        """Add the maps of one layer, [rows, heads, pixels, tokens]."""
        of_words = sum_of_words(maps, self.control.rows, self.control.words)
        self._maps = of_words if self._maps is None else self._maps + of_words

    def of_layer(self, pixels: int, position: float) -> Tensor | None:
        """Whether pixel i of a row may attend to pixel j of its source, bool [rows, 1, i, j]; None without maps.

        Args:
            pixels: Number of the layer's pixels.
            position: Position of the layer among the self-attention layers. At each the first call decides.
        """
        if position not in self._masks:
            self._masks[position] = None if self._maps is None else self._mask(self._maps, pixels)
        return self._masks[position]

    def _mask(self, maps: Tensor, pixels: int) -> Tensor:
        control = self.control
        low, high = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
        size = next(size for size in control.layer_sizes if math.prod(size) == pixels)
        attention = F.interpolate(((maps - low) / (high - low)).unflatten(-1, control.map_size), size)
        source, edit = (attention >= control.threshold[:, None, None, None]).flatten(2).unbind(1)
        mask = edit[:, :, None] == source[:, None, :]
        without = ~control.words.any(-1).any(-1)[:, None, None] | ~mask.any(-1, keepdim=True)
        return (mask | without)[:, None]


def sum_of_words(maps: Tensor, rows: Rows, words: Tensor) -> Tensor:
    """Attention of words in the maps of source and edit, [rows, 2, pixels].

    Args:
        maps: Maps of one layer, [rows, heads, pixels, tokens].
        rows: Rows of the batch.
        words: 1 for the words of source and edit, 0 for other tokens, [rows, 2, tokens].
    """
    own = maps.mean(1)
    return torch.einsum("rkpt,rkt->rkp", torch.stack([own[rows.source_of], own], 1), words)
