"""Prompts with tokens of at most four letters, and noise."""

import re

import torch
from torch import Tensor

from nti_batch.diffusion.alignment import TokenizedPrompt

LENGTH = 12


def tokenized(prompt: str, length: int = LENGTH) -> TokenizedPrompt:
    """'a tiger' has the tokens start, a, tige, r, end, padding ..."""
    pieces = [match.span() for match in re.finditer(r"\w{1,4}|[^\w\s]", prompt)][: length - 2]
    return TokenizedPrompt.of(prompt, [(0, 0), *pieces] + [(0, 0)] * (length - 1 - len(pieces)))


def noise(size: tuple[int, int] = (8, 8), images: int = 1) -> Tensor:
    return torch.stack([torch.randn(4, *size, generator=torch.Generator().manual_seed(i)) for i in range(images)])
