"""Prompt-to-prompt: another prompt, the attention of the source.

Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", 2022, https://arxiv.org/abs/2208.01626.
A source and its edits are rows of one batch. M is the attention map of the source, M* an edit's own, [heads, pixels,
tokens]; z and z* are their latents. At the timestep t of T, in every cross-attention layer:

    replaced = M A + M* (1 - a)                      a is 1 for edit tokens that stand for source tokens, else 0
    M*_t     = c_t (s replaced) + (1 - c_t) M*       c_t is 1 in the first steps, a share of T that each token has

In self-attention layers coarser than the latents, or of at most 32 x 32 pixels, M*_t = M, likewise in a share of the
steps: both are the authors' rule for latents of 64 x 64. After a step, local blend leaves as it was what the words of
a blend do not look at:

    z*_{t-1} <- z_{t-1} + m (z*_{t-1} - z_{t-1})     m is 1 where the blend words' maps are above a threshold, else 0

with m the union of the source's and the edit's mask: the maps of their blend words, summed over layers of one
resolution and over the steps so far, 3 x 3 max-pooled and divided by the maximum. Names here and symbols there:

    alignment      A      source to edit tokens; a is 1 where a column of it is not zero
    weights        s      of edit tokens: the equaliser
    cross_replace_steps           share of the steps in which c_t is 1
    self_replace_steps            the same for self-attention
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.diffusion.ddim import guided_step, predict_at
from nti_batch.diffusion.edits import EditControl
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.schedule import DDIMSchedule

BLEND_PIXELS = 256
"""Local blend takes the maps of the resolution that is nearest to this many: 16 x 16 in Stable Diffusion."""

SELF_PIXELS = 1024
"""Self-attention layers with no more pixels are the source's even where they are as fine as the latents."""


class AttentionControl:
    """The control of one batch: all rows, and the blend maps of the steps so far. For one sampling run.

    Rows are the first image's source, its edits, the second image's source, its edits, ... Only within `at` is
    attention changed.
    """

    def __init__(
        self,
        edits: Sequence[Sequence[EditControl]],
        num_steps: int,
        latent_size: tuple[int, int],
        cross_sizes: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:
        """Put the rows together.

        Args:
            edits: Those of each image.
            num_steps: T.
            latent_size: Height and width.
            cross_sizes: Heights and widths of the network's cross-attention layers for such latents.
            device: The network's.
        """
        length = next((len(edit.weights) for of_image in edits for edit in of_image), 1)
        rows = [row for of_image in edits for row in (EditControl.none(length), *of_image)]
        counts = torch.tensor([1 + len(of_image) for of_image in edits])
        image_of = torch.arange(len(edits)).repeat_interleave(counts)

        def stack(of: Callable[[EditControl], Tensor | float]) -> Tensor:
            return torch.stack([torch.as_tensor(of(row)) for row in rows])

        self.num_steps, self.device = num_steps, device
        self.self_pixels = max(math.prod(latent_size) - 1, SELF_PIXELS)
        """Most pixels of a self-attention layer that is replaced."""
        self.map_size = min(cross_sizes, key=lambda size: abs(math.log(size[0] * size[1] / BLEND_PIXELS)))
        self.image_of, self.sources = image_of.to(device), (counts.cumsum(0) - counts).to(device)
        self.source_of = self.sources[self.image_of]
        self.alignment = stack(lambda row: row.alignment).to(device)
        self.standing = self.alignment.any(1)
        """a, [rows, tokens]."""
        self.weights = stack(lambda row: row.weights).to(device)
        self.blend_words = stack(lambda row: torch.stack([row.source_words, row.edit_words])).to(device)
        """[rows, 2, tokens]."""
        self.threshold = stack(lambda row: row.blend_threshold).to(device)
        # numbers of steps stay on the CPU, where it is decided whether a layer has anything to do with them
        self.cross_steps = stack(lambda row: num_steps * row.cross_replace_steps).round()
        self.self_steps = stack(lambda row: num_steps * row.self_replace_steps).round()
        self.blend_steps = stack(lambda row: num_steps * row.blend_start).round()
        self.maps: Tensor | None = None
        """What the blend words of source and edit looked at so far, [rows, 2, map height * map width]."""
        self.cross: Tensor | None = None
        """c_t, [rows, tokens], where it is not 0 for all; None outside `at`."""
        self.self_rows: Tensor | None = None
        """The row whose self-attention map each row takes, [rows], where that is not its own for all."""
        self.collecting = False

    @contextmanager
    def at(self, t: int) -> Iterator[None]:
        """Control the evaluations made inside, which are those of the prompts at timestep t."""
        done = self.num_steps - t
        cross, attending = done < self.cross_steps, done < self.self_steps
        if cross.any():
            self.cross = cross.to(self.device)
        if attending.any():
            own = torch.arange(len(self.source_of), device=self.device)
            self.self_rows = torch.where(attending.to(self.device), self.source_of, own)
        self.collecting = bool((self.blend_steps < self.num_steps).any())
        try:
            yield
        finally:
            self.cross, self.self_rows, self.collecting = None, None, False

    def collects(self, pixels: int) -> bool:
        """Whether the maps of a cross-attention layer with so many pixels are wanted now."""
        return self.collecting and pixels == math.prod(self.map_size)

    def replace(self, maps: Tensor) -> Tensor:
        """M*_t of each row from the rows' own cross-attention maps, [rows, heads, pixels, tokens]."""
        if self.cross is None:
            return maps
        a, s, c = (x[:, None, None] for x in (self.standing, self.weights, self.cross))
        replaced = maps[self.source_of] @ self.alignment[:, None] + maps * ~a
        return torch.where(c, s * replaced, maps)

    def collect(self, maps: Tensor) -> None:
        """Add what the blend words look at in one layer, from [rows, heads, pixels, tokens]."""
        own = maps.mean(1)
        looks = torch.einsum("rkpt,rkt->rkp", torch.stack([own[self.source_of], own], 1), self.blend_words)
        self.maps = looks if self.maps is None else self.maps + looks

    def blend(self, latents: Tensor, t: int) -> Tensor:
        """z_{t-1} of all rows with local blend, after the step from t."""
        blending = self.num_steps - t >= self.blend_steps
        if self.maps is None or not blending.any():
            return latents
        pooled = F.max_pool2d(self.maps.unflatten(-1, self.map_size), 3, 1, 1)
        looks = F.interpolate(pooled, latents.shape[-2:])
        looks = looks / looks.amax((-2, -1), keepdim=True)
        mask = (looks > self.threshold[:, None, None, None]).any(1) | ~blending.to(self.device)[:, None, None]
        return torch.where(mask[:, None], latents, latents[self.source_of])


@torch.no_grad()
def edit_sample(
    predict: Predictor,
    schedule: DDIMSchedule,
    noise_latents: Tensor,
    prompt_embeddings: Tensor,
    null_embeddings: Sequence[Tensor],
    guidance_scale: float,
    control: AttentionControl,
    pivot: Sequence[Tensor] | None = None,
) -> Tensor:
    """Sample sources and their edits from z_T down to z_0, [rows, channels, height, width].

    An edit starts from its source's z_T and is guided away from its source's null embeddings. The network's attention
    must be under `control`.

    Args:
        predict: The network.
        schedule: The noise levels.
        noise_latents: z_T, [images, channels, height, width].
        prompt_embeddings: C, [rows, tokens, dim].
        null_embeddings: T unconditional embeddings, each [images, tokens, dim]; the first belongs to t = T.
        guidance_scale: w; at 1 the unconditional embeddings are not looked at.
        control: New, of these rows.
        pivot: z*_{T-1} ... z*_0 of direct inversion, each [images, channels, height, width]: where sources go; edits
            go on from where they are.
    """
    latents, num_steps = noise_latents[control.image_of], schedule.num_steps
    targets = pivot or repeat(None, num_steps)
    for t, null_embedding, target in zip(range(num_steps, 0, -1), null_embeddings, targets, strict=True):
        with control.at(t):
            noise_cond = predict_at(predict, schedule, latents, t, prompt_embeddings)
        null_rows = null_embedding[control.image_of]
        latents = guided_step(predict, schedule, latents, t, noise_cond, null_rows, guidance_scale)
        if target is not None:
            latents = latents.index_copy(0, control.sources, target)
        latents = control.blend(latents, t)
    return latents
