"""Proximal guidance: an edit follows only the large values of the difference that guides it.

Han et al., "ProxEdit: Improving Tuning-Free Real Image Editing with Proximal Guidance", 2023,
https://arxiv.org/abs/2306.05414. With d = eps(z, C) - eps(z, null), the quantile lambda of |d| over the rows of an edit
and of its source, and the edit's guidance scale w:

    eps = eps(z, null) + w prox(d)

    l1    prox(d) = sign(d) max(|d| - lambda, 0)      the soft threshold
    l0    prox(d) = d where |d| > lambda, else 0      the hard threshold

In the last steps, inversion guidance corrects the edit towards its source outside the mask m, which is 1 within
`dilate_mask` latent pixels of |prox(d)| > lambda. The edit's latents are z*, and r is `recon_lr`:

    z*_{t-1} <- z*_{t-1} - r (1 - m) (z*_{t-1} - z_{t-1})

The authors' code computes the soft threshold under the name `l0`, and its `l1` is neither of the two. It corrects
towards the DDIM pivot, of which the source's row is the replay.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.diffusion.edit_settings import EditSettings


def proximal_difference(difference: Tensor, source: Tensor, settings: EditSettings) -> tuple[Tensor, Tensor]:
    """prox(d) and 1 - m of one edit.

    Args:
        difference: d of the edit, [channels, height, width].
        source: d of its source, likewise.
        settings: Settings of the edit.
    """
    threshold = torch.cat([source, difference]).abs().flatten().quantile(settings.quantile)
    if settings.proximal == "l1":
        kept = difference - difference.clamp(-threshold, threshold)
    else:
        kept = difference * (difference.abs() > threshold)
    edited, radius = (kept.abs() > threshold).to(kept.dtype), settings.dilate_mask
    return kept, 1 - F.max_pool2d(edited, 2 * radius + 1, 1, radius)
