"""Prompt-to-prompt: an image with another prompt, by the attention of the source.

Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", 2022, https://arxiv.org/abs/2208.01626.
A source and its edits are rows of one batch. M is the attention map of the source, M* an edit's own, [heads, pixels,
tokens]; z and z* are their latents. At the timestep t of T, in every cross-attention layer:

    replaced = M A + M* (1 - a)                      a is 1 for edit tokens that stand for source tokens, else 0
    M*_t     = c_t (s replaced) + (1 - c_t) M*       c_t is 1 in a range of the steps, which each token has

In self-attention layers coarser than the latents, or of at most 32 x 32 pixels, M*_t = M, likewise in a range of the
steps: both are the authors' rule for latents of 64 x 64 (`self_attention`). After a step, local blend restores the
source where the blend words have no attention, or where words to keep have it:

    z*_{t-1} <- z_{t-1} + m (1 - k) (z*_{t-1} - z_{t-1})
    m, k = 1 where the maps of the blend words, of the subtracted words, are above their threshold, else 0

with m and k the union of the source's and the edit's mask: the maps of their words, summed over layers of one
resolution and over the steps so far, for m 3 x 3 max-pooled, and divided by the maximum. Other methods of attention
have c_t = 0 and may blend, too. Names here and symbols there:

    alignment                     A      source to edit tokens
    aligned                       a      1 where a column of A is not zero
    weights                       s      factors of edit tokens: the equalizer
    cross_replace_steps           range of the steps in which c_t is 1
    subtract_words                words of k: `substruct_words` in the authors' code
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.diffusion.attention_trace import AttentionTrace
from nti_batch.diffusion.edit_control import EditControl
from nti_batch.diffusion.foreground import ForegroundControl, ForegroundMasks, sum_of_words
from nti_batch.diffusion.rows import Rows
from nti_batch.diffusion.self_attention import SelfAttentionControl, SelfAttentionStep, SourceRows

BLEND_PIXELS = 256
"""Local blend takes the maps of the resolution that is nearest to this many: 16 x 16 in Stable Diffusion."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionControl:
    """The control of one batch over all steps; `at` gives the control of one step.

    As in the authors' code, a share s selects the first int(s T) steps for self-attention and local blend, and the
    first int(s (T + 1)) for cross-attention.
    """

    num_steps: int
    """T."""

    map_size: tuple[int, int]
    """Height and width of the maps that local blend takes."""

    rows: Rows
    alignment: Tensor
    """A, [rows, tokens, tokens]."""

    aligned: Tensor
    """a, [rows, tokens]."""

    weights: Tensor
    """s, [rows, tokens]."""

    blend_words: Tensor
    """1 for the blend words of source and edit, 0 for other tokens, [rows, 2, tokens]."""

    threshold: Tensor
    """Threshold of local blend, [rows]."""

    subtract_words: Tensor | None
    """1 for the words of k, 0 for other tokens, [rows, 2, tokens]; None if no row has such words."""

    subtract_threshold: Tensor
    """Threshold of k, [rows]."""

    cross_steps: Tensor
    """First step in which c_t is 1, and first step in which it is 0 again, [rows, 2, tokens].

    Numbers of steps stay on the CPU, which decides whether a layer has maps to replace."""

    blend_steps: Tensor
    """First step with local blend, [rows], on the CPU; T for a row without."""

    self_attention: SelfAttentionControl
    foreground: ForegroundControl | None
    """None if no row has foreground words."""

    @classmethod
    def of(
        cls,
        edits: Sequence[Sequence[EditControl]],
        num_steps: int,
        latent_size: tuple[int, int],
        cross_sizes: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> "AttentionControl":
        """Stack the controls of the rows.

        Args:
            edits: The edits of each image.
            num_steps: T.
            latent_size: Height and width.
            cross_sizes: Heights and widths of the network's cross-attention layers for such latents.
            device: The network's device.
        """
        length = next((len(edit.weights) for of_image in edits for edit in of_image), 1)
        controls = [row for of_image in edits for row in (EditControl.none(length), *of_image)]
        alignment = torch.stack([row.alignment for row in controls])
        rows = Rows.of([len(of_image) for of_image in edits], device)
        map_size = min(cross_sizes, key=lambda size: abs(math.log(size[0] * size[1] / BLEND_PIXELS)))
        subtract_words = torch.stack([row.subtract_words for row in controls])
        foreground_words = torch.stack([row.foreground_words for row in controls])
        foreground = ForegroundControl(
            rows=rows,
            words=foreground_words.to(device),
            threshold=torch.tensor([row.foreground_threshold for row in controls], device=device),
            map_size=map_size,
            layer_sizes=cross_sizes,
        )
        return cls(
            num_steps=num_steps,
            map_size=map_size,
            rows=rows,
            alignment=alignment.to(device),
            aligned=alignment.any(1).to(device),
            weights=torch.stack([row.weights for row in controls]).to(device),
            blend_words=torch.stack([row.blend_words for row in controls]).to(device),
            threshold=torch.tensor([row.blend_threshold for row in controls], device=device),
            subtract_words=subtract_words.to(device) if subtract_words.any() else None,
            subtract_threshold=torch.tensor([row.subtract_threshold for row in controls], device=device),
            cross_steps=torch.stack([row.cross_replace_steps * (num_steps + 1) for row in controls]).long(),
            blend_steps=torch.tensor([int(row.blend_start * num_steps) for row in controls]),
            self_attention=SelfAttentionControl.of(controls, rows, num_steps, latent_size),
            foreground=foreground if foreground_words.any() else None,
        )

    @property
    def blends(self) -> bool:
        """Whether any row has local blend."""
        return bool((self.blend_steps < self.num_steps).any())

    def at(self, t: int, blend: "LocalBlend | None" = None, trace: AttentionTrace | None = None) -> "StepControl":
        """Control of the evaluation of the prompts at timestep t, whose maps `blend` and `trace` collect."""
        step = self.num_steps - t
        cross = (self.cross_steps[:, 0] <= step) & (step < self.cross_steps[:, 1])
        foreground = ForegroundMasks(self.foreground) if self.foreground else None
        return StepControl(
            batch=self,
            cross=cross.to(self.alignment.device) if cross.any() else None,
            self_attention=self.self_attention.at(step),
            foreground=foreground,
            collectors=tuple(filter(None, (blend if self.blends else None, foreground))),
            trace=trace,
        )


@dataclass(frozen=True, slots=True, eq=False)
class StepControl:
    """The control of one batch in one evaluation."""

    batch: AttentionControl
    cross: Tensor | None
    """c_t, [rows, tokens]; None if it is 0 for all."""

    self_attention: SelfAttentionStep
    foreground: ForegroundMasks | None
    collectors: "tuple[LocalBlend | ForegroundMasks, ...]"
    """What collects cross-attention maps, if any row needs them."""

    trace: AttentionTrace | None = None
    """What shows the maps; they are not computed otherwise than without it."""

    def of_null(self) -> "StepControl | None":
        """Control of the evaluation of the null embeddings after that of the prompts; None if it changes nothing."""
        self_attention = self.self_attention.of_null()
        return StepControl(self.batch, None, self_attention, self.foreground, ()) if self_attention.is_active else None

    def self_attention_of_layer(self, pixels: int, position: float) -> SourceRows | None:
        """Rows to attend with in one self-attention layer; None if each row attends with its own.

        Args:
            pixels: Number of the layer's pixels.
            position: k / n of layer k, from 0, of n self-attention layers in the order of evaluation.
        """
        rows = self.self_attention.of_layer(pixels, position)
        return rows.masked(self.foreground.of_layer(pixels, position)) if rows and self.foreground else rows

    def needs_maps(self, pixels: int) -> bool:
        """Whether the control reads or replaces the maps of a cross-attention layer with so many pixels."""
        return self.cross is not None or self._collects(pixels)

    def cross_attention(self, maps: Tensor) -> Tensor:
        """M*_t of each row from the rows' own cross-attention maps, [rows, heads, pixels, tokens]."""
        replaced = self._replace(maps)
        for collector in self.collectors if self._collects(maps.shape[2]) else ():
            collector.collect(replaced)
        self.show(replaced)
        return replaced

    def shows(self, pixels: int) -> bool:
        """Whether the trace takes the maps of a cross-attention layer with so many pixels."""
        return self.trace is not None and pixels == math.prod(self.batch.map_size)

    def show(self, maps: Tensor) -> None:
        """Add maps to the trace, [rows, heads, pixels, tokens]."""
        if self.trace and self.shows(maps.shape[2]):
            self.trace.collect(maps, self.batch.map_size)

    def _collects(self, pixels: int) -> bool:
        return bool(self.collectors) and pixels == math.prod(self.batch.map_size)

    def _replace(self, maps: Tensor) -> Tensor:
        if self.cross is None:
            return maps
        batch = self.batch
        a, s, c = (x[:, None, None] for x in (batch.aligned, batch.weights, self.cross))
        replaced = maps[batch.rows.source_of] @ batch.alignment[:, None] + maps * ~a
        return torch.where(c, s * replaced, maps)


class LocalBlend:
    """Local blend of one sampling run: the maps of the blend words so far, and the mask that follows from them."""

    def __init__(self, control: AttentionControl) -> None:
        """Start without maps."""
        self.control = control
        self.maps: Tensor | None = None
        """Attention of the blend words of source and edit, [rows, 2, map height * map width]."""

        self.subtracted: Tensor | None = None
        """Attention of the words of k; None if no row has them."""

        self.mask: Tensor | None = None
        """The mask of the last step with local blend, bool [rows, height, width]."""

    def collect(self, maps: Tensor) -> None:
        """Add the maps of one layer, [rows, heads, pixels, tokens]."""
        control = self.control
        of_words = sum_of_words(maps, control.rows, control.blend_words)
        self.maps = of_words if self.maps is None else self.maps + of_words
        if control.subtract_words is not None:
            of_words = sum_of_words(maps, control.rows, control.subtract_words)
            self.subtracted = of_words if self.subtracted is None else self.subtracted + of_words

    def restart(self, rows: Tensor) -> None:
        """Drop the maps of some rows, bool [rows]."""
        if self.maps is not None:
            self.maps = self.maps.masked_fill(rows[:, None, None], 0)
        if self.subtracted is not None:
            self.subtracted = self.subtracted.masked_fill(rows[:, None, None], 0)

    def __call__(self, latents: Tensor, t: int) -> Tensor:
        """z_{t-1} of all rows with local blend, after the step from t."""
        control = self.control
        blending = control.num_steps - t >= control.blend_steps
        if self.maps is None or not blending.any():
            return latents
        self.mask = self._mask(latents.shape[-2:]) | ~blending.to(latents.device)[:, None, None]
        return torch.where(self.mask[:, None], latents, latents[control.rows.source_of])

    def _mask(self, size: torch.Size) -> Tensor:
        """Where the image may change, m (1 - k), [rows, height, width]."""
        assert self.maps is not None
        control = self.control
        pooled = F.max_pool2d(self.maps.unflatten(-1, control.map_size), 3, 1, 1)
        mask = _attended(pooled, size, control.threshold)
        if self.subtracted is not None:
            subtracted = self.subtracted.unflatten(-1, control.map_size)
            mask &= ~_attended(subtracted, size, control.subtract_threshold)
        return mask


def _attended(maps: Tensor, size: torch.Size, threshold: Tensor) -> Tensor:
    """Where the attention of source or edit, [rows, 2, ...], is above its threshold, [rows, height, width]."""
    attention = F.interpolate(maps, size)
    attention = attention / attention.amax((-2, -1), keepdim=True)
    return (attention > threshold[:, None, None, None]).any(1)
