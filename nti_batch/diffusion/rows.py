"""Rows of a batch of images and their edits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
