"""Prompt-to-prompt: an image with another prompt, by the attention of the source.

Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", 2022, https://arxiv.org/abs/2208.01626.
A source and its edits are rows of one batch. M is the attention map of the source, M* an edit's own, [heads, pixels,
tokens]; z and z* are their latents. At the timestep t of T, in every cross-attention layer:

    replaced = M A + M* (1 - a)                      a is 1 for edit tokens that stand for source tokens, else 0
    M*_t     = c_t (s replaced) + (1 - c_t) M*       c_t is 1 in a range of the steps, which each token has

In self-attention layers coarser than the latents, or of at most 32 x 32 pixels, M*_t = M, likewise in a range of the
steps: both are the authors' rule for latents of 64 x 64. After a step, local blend restores the source where the blend
words have no attention:

    z*_{t-1} <- z_{t-1} + m (z*_{t-1} - z_{t-1})     m is 1 where the blend words' maps are above a threshold, else 0

with m the union of the source's and the edit's mask: the maps of their blend words, summed over layers of one
resolution and over the steps so far, 3 x 3 max-pooled and divided by the maximum. Names here and symbols there:

    alignment                     A      source to edit tokens
    aligned                       a      1 where a column of A is not zero
    weights                       s      factors of edit tokens: the equalizer
    cross_replace_steps           range of the steps in which c_t is 1
    self_replace_steps            range of the steps in which M*_t is M in self-attention
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.diffusion.edit_settings import EditControl

BLEND_PIXELS = 256
"""Local blend takes the maps of the resolution that is nearest to this many: 16 x 16 in Stable Diffusion."""

SELF_PIXELS = 1024
"""Self-attention layers with no more pixels take the source's maps even where they are as fine as the latents."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of a batch: the first image's source, its edits, the second image's source, its edits, ..."""

    image_of: Tensor
    """Image of each row, [rows]."""

    sources: Tensor
    """Source's row of each image, [images]."""

    source_of: Tensor
    """Source's row of each row, [rows]."""

    @classmethod
    def of(cls, num_edits: Sequence[int], device: torch.device) -> "Rows":
        """Number the rows of images with so many edits each."""
        counts = torch.tensor([1 + n for n in num_edits])
        image_of, sources = torch.arange(len(counts)).repeat_interleave(counts), counts.cumsum(0) - counts
        return cls(image_of.to(device), sources.to(device), sources[image_of].to(device))


@dataclass(frozen=True, slots=True, eq=False)
class AttentionControl:
    """The control of one batch over all steps; `at` gives the control of one step.

    As in the authors' code, a share s selects the first int(s T) steps for self-attention and local blend, and the
    first int(s (T + 1)) for cross-attention.
    """

    num_steps: int
    """T."""

    self_pixels: int
    """Largest number of pixels of a self-attention layer whose maps are replaced."""

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

    cross_steps: Tensor
    """First step in which c_t is 1, and first step in which it is 0 again, [rows, 2, tokens].

    Numbers of steps stay on the CPU, which decides whether a layer has maps to replace."""

    self_steps: Tensor
    """The two steps for self-attention, [rows, 2], on the CPU."""

    blend_steps: Tensor
    """First step with local blend, [rows], on the CPU; T for a row without."""

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
        blend_words = [torch.stack([row.source_words, row.edit_words]) for row in controls]
        self_steps = [[int(share * num_steps) for share in row.self_replace_steps] for row in controls]
        return cls(
            num_steps=num_steps,
            self_pixels=max(math.prod(latent_size) - 1, SELF_PIXELS),
            map_size=min(cross_sizes, key=lambda size: abs(math.log(size[0] * size[1] / BLEND_PIXELS))),
            rows=Rows.of([len(of_image) for of_image in edits], device),
            alignment=alignment.to(device),
            aligned=alignment.any(1).to(device),
            weights=torch.stack([row.weights for row in controls]).to(device),
            blend_words=torch.stack(blend_words).to(device),
            threshold=torch.tensor([row.blend_threshold for row in controls], device=device),
            cross_steps=torch.stack([row.cross_replace_steps * (num_steps + 1) for row in controls]).long(),
            self_steps=torch.tensor(self_steps),
            blend_steps=torch.tensor([int(row.blend_start * num_steps) for row in controls]),
        )

    @property
    def blends(self) -> bool:
        """Whether any row has local blend."""
        return bool((self.blend_steps < self.num_steps).any())

    def at(self, t: int, blend: "LocalBlend | None" = None) -> "StepControl":
        """Control of the evaluation of the prompts at timestep t, whose maps `blend` collects."""
        done, device = self.num_steps - t, self.alignment.device
        cross = (self.cross_steps[:, 0] <= done) & (done < self.cross_steps[:, 1])
        attending = (self.self_steps[:, 0] <= done) & (done < self.self_steps[:, 1])
        own = torch.arange(len(attending), device=device)
        return StepControl(
            batch=self,
            cross=cross.to(device) if cross.any() else None,
            self_rows=torch.where(attending.to(device), self.rows.source_of, own) if attending.any() else None,
            blend=blend if self.blends else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class StepControl:
    """The control of one batch at one timestep."""

    batch: AttentionControl
    cross: Tensor | None
    """c_t, [rows, tokens]; None if it is 0 for all."""

    self_rows: Tensor | None
    """The row whose self-attention map each row takes, [rows]; None if each takes its own."""

    blend: "LocalBlend | None"
    """Collects the maps of the blend words, if any row has local blend."""

    def self_rows_of_layer(self, pixels: int) -> Tensor | None:
        """`self_rows` for a self-attention layer with so many pixels; None if each row takes its own map there."""
        return self.self_rows if pixels <= self.batch.self_pixels else None

    def needs_maps(self, pixels: int) -> bool:
        """Whether the control reads or replaces the maps of a cross-attention layer with so many pixels."""
        return self.cross is not None or self._collects(pixels)

    def cross_attention(self, maps: Tensor) -> Tensor:
        """M*_t of each row from the rows' own cross-attention maps, [rows, heads, pixels, tokens]."""
        replaced = self._replace(maps)
        if self.blend is not None and self._collects(maps.shape[2]):
            self.blend.collect(replaced)
        return replaced

    def _collects(self, pixels: int) -> bool:
        return self.blend is not None and pixels == math.prod(self.batch.map_size)

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

    def collect(self, maps: Tensor) -> None:
        """Add the maps of one layer, [rows, heads, pixels, tokens]."""
        own = maps.mean(1)
        pair = torch.stack([own[self.control.rows.source_of], own], 1)
        of_words = torch.einsum("rkpt,rkt->rkp", pair, self.control.blend_words)
        self.maps = of_words if self.maps is None else self.maps + of_words

    def restart(self, rows: Tensor) -> None:
        """Drop the maps of some rows, bool [rows]."""
        if self.maps is not None:
            self.maps = self.maps.masked_fill(rows[:, None, None], 0)

    def __call__(self, latents: Tensor, t: int) -> Tensor:
        """z_{t-1} of all rows with local blend, after the step from t."""
        control = self.control
        blending = control.num_steps - t >= control.blend_steps
        if self.maps is None or not blending.any():
            return latents
        mask = self._mask(latents.shape[-2:]) | ~blending.to(latents.device)[:, None, None]
        return torch.where(mask[:, None], latents, latents[control.rows.source_of])

    def _mask(self, size: torch.Size) -> Tensor:
        """m, [rows, height, width]."""
        assert self.maps is not None
        pooled = F.max_pool2d(self.maps.unflatten(-1, self.control.map_size), 3, 1, 1)
        attention = F.interpolate(pooled, size)
        attention = attention / attention.amax((-2, -1), keepdim=True)
        return (attention > self.control.threshold[:, None, None, None]).any(1)
