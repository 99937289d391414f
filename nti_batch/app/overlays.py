"""Attention and masks drawn over an image."""

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.data.images import to_bytes

_COLOURS = torch.tensor(matplotlib.colormaps["inferno"](range(256))[:, :3], dtype=torch.float32)
"""Colours of 256 values from 0 to 1."""

_MASK_COLOUR = torch.tensor([0.0, 0.75, 0.65])


def heat_map(image: Tensor, attention: Tensor) -> Tensor:
    """Colour an image by attention: dark where there is none, bright where it is largest.

    Args:
        image: uint8 [3, height, width].
        attention: From 0 to 1, [map height, map width].

    Returns:
        uint8 [3, height, width].
    """
    height, width = image.shape[1:]
    resized = F.interpolate(attention[None, None].float(), (height, width), mode="bilinear")[0, 0]
    colours = _COLOURS[(resized.clamp(0, 1) * 255).round().long()].permute(2, 0, 1)
    grey = (image / 255).mean(0, keepdim=True)
    return to_bytes(0.3 * grey + 0.7 * colours)


def mask_overlay(image: Tensor, inside: Tensor) -> Tensor:
    """Tint the pixels inside a mask, and darken the others.

    Args:
        image: uint8 [3, height, width].
        inside: bool [height, width].
    """
    shown = image / 255
    tinted = 0.55 * shown + 0.45 * _MASK_COLOUR[:, None, None]
    return to_bytes(torch.where(inside, tinted, 0.45 * shown))
