"""Measures of image quality, one number for each image of a batch.

Images are [batch, 3, height, width] in [0, 1]. `where`, bool [batch, height, width], restricts a measure to the pixels
that are True; an image without such pixels has nan.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = torch.exp(-0.5 * (torch.arange(-5.0, 6.0) / 1.5) ** 2)


_C1 = 0.01**2


_C2 = 0.03**2


def mse(image: Tensor, reference: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the mean squared error over pixels and colours, [batch]."""
    return _mean((image - reference).square(), where)


def psnr(image: Tensor, reference: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, -10 log10(MSE), [batch]; equal images have 100."""
    return -10 * mse(image, reference, where).clamp(min=1e-10).log10()


def ssim(image: Tensor, reference: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the structural similarity, [batch]; equal images have 1.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004,
    https://doi.org/10.1109/TIP.2003.819861, for each colour:

        (2 mu_x mu_y + C1) (2 sigma_xy + C2) / ((mu_x^2 + mu_y^2 + C1) (sigma_x^2 + sigma_y^2 + C2))

    with a Gaussian window of 11 x 11 and standard deviation 1.5 around each pixel, mirrored at the borders. The map is
    averaged over pixels and colours; the window of a pixel of `where` may reach out of `where`. A side below 6 pixels
    has nothing to mirror, and its border pixels are repeated.
    """
    x, y = image, reference
    mu_x, mu_y = _blur(x), _blur(y)
    var_x, var_y, cov = _blur(x * x) - mu_x * mu_x, _blur(y * y) - mu_y * mu_y, _blur(x * y) - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + _C1) / (mu_x * mu_x + mu_y * mu_y + _C1)
    return _mean(luminance * (2 * cov + _C2) / (var_x + var_y + _C2), where)


def _blur(images: Tensor) -> Tensor:
    """Return the Gaussian mean around each pixel, in the same shape."""
    window = (_WINDOW / _WINDOW.sum()).to(images)
    mode = "reflect" if min(images.shape[-2:]) > 5 else "replicate"
    planes = F.pad(images.flatten(0, 1)[:, None], (5, 5, 5, 5), mode=mode)
    return F.conv2d(F.conv2d(planes, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1)).view_as(images)


def _mean(values: Tensor, where: Tensor | None) -> Tensor:
    """Return the mean over colours and the chosen pixels, [batch]."""
    if where is None:
        return values.mean(dim=(1, 2, 3))
    chosen = where[:, None].expand_as(values)
    return torch.where(chosen, values, 0).sum(dim=(1, 2, 3)) / chosen.sum(dim=(1, 2, 3))
