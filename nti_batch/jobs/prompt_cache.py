"""Keeps the embeddings of the last prompts, for captions that many images share."""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_PROMPTS = 64
"""Prompts whose embeddings are kept: up to 40 MB on the device."""


class PromptCache:
    """Embeds prompts, each once while it is kept."""

    def __init__(self, embed_prompts: Callable[[list[str]], Tensor]) -> None:
        """Take the function that embeds a batch of prompts, [prompts, tokens, dim]."""
        self.embed_prompts = embed_prompts
        self._embeddings: dict[str, Tensor] = {}

    def __call__(self, prompts: list[str]) -> Tensor:
        """Embed prompts, the new ones in one call."""
        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]:
            self._embeddings.update(zip(missing, self.embed_prompts(missing), strict=True))
        embeddings = torch.stack([self._embeddings[prompt] for prompt in prompts])
        for oldest in list(self._embeddings)[:-MAX_PROMPTS]:
            del self._embeddings[oldest]
        return embeddings
