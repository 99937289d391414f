"""Picture quality, one number an image. Pictures are [batch, 3, height, width] in [0, 1]."""

from torch import Tensor


def psnr(picture: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, -10 log10 of the mean squared error, [batch]; equal pictures have 100."""
    return -10 * (picture - reference).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()
