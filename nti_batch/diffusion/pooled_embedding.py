"""A pooled text embedding as one more row of the others.

Stable Diffusion XL encodes a prompt twice: token by token, and as a whole. States, solvers and files hold one embedding
tensor an image. Here the pooled embedding is its last row, with zeros up to the width of the others:

    null_t = [ token 1; ...; token 77; pooled, 0 ... 0 ]
"""

import torch.nn.functional as F
from torch import Tensor, cat


def join_pooled(tokens: Tensor, pooled: Tensor) -> Tensor:
    """[..., tokens, dim] and [..., pooled dim], which is no wider, to [..., tokens + 1, dim]."""
    row = F.pad(pooled, (0, tokens.shape[-1] - pooled.shape[-1]))
    return cat([tokens, row.unsqueeze(-2)], dim=-2)


def split_pooled(embeddings: Tensor, pooled_dim: int) -> tuple[Tensor, Tensor]:
    """Undo `join_pooled`: return the tokens' embeddings, and the pooled one without its zeros."""
    return embeddings[..., :-1, :], embeddings[..., -1, :pooled_dim]
