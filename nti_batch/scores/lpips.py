"""LPIPS, a distance of images by the features of a network, without torchvision.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018,
https://arxiv.org/abs/1801.03924, equation (1). With the features y_l of layer l, scaled to length 1 at each pixel, and
the learned weights w_l,

    d(x, x0) = sum over l  mean over pixels  w_l . (y_l - y0_l)^2

The network is SqueezeNet 1.1 with version 0.1's weights, as in PIE-Bench.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_SLICES = (range(2), range(2, 5), range(5, 8), range(8, 10), range(10, 11), range(11, 12), range(12, 13))
"""Layers of SqueezeNet's `features`, cut behind each layer that is compared."""


_POOLINGS = (2, 5, 8)


_MEAN = (-0.030, -0.088, -0.188)


_DEVIATION = (0.458, 0.448, 0.450)


class Lpips:
    """LPIPS with the weights in `model.safetensors`, torchmetrics' state dict for SqueezeNet."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load the weights.

        Raises:
            ValueError: If the weights are missing or belong to another network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.device = device
        path = folder / "model.safetensors"
        try:
            self.weights = {name: weight.to(device) for name, weight in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} does not load: {error}; docs/scores.md says how to write it") from error
        needed = {f"lin{i}.model.1.weight" for i in range(len(_SLICES))} | {"net.slices.0.0.weight"}
        if lacking := sorted(needed - self.weights.keys()):
            raise ValueError(f"{path} lacks {lacking[0]!r}: it is not LPIPS's SqueezeNet; see docs/scores.md")

    @torch.no_grad()
    def __call__(self, image: Tensor, reference: Tensor, where: Tensor | None = None) -> Tensor:
        """Return the distances of a batch of images.

        Args:
            image: [batch, 3, height, width] in [0, 1], at least 17 pixels high and wide.
            reference: Images to compare with, in the same form.
            where: Pixels to average over, bool [batch, height, width]; None for all. Each layer's distances are
                resized bilinearly to the image. The features of a pixel depend on pixels around it.

        Returns:
            [batch]; nan for an image without a chosen pixel.
        """
        total = torch.zeros(len(image), device=self.device)
        for i, (y, y0) in enumerate(zip(self._features(image), self._features(reference), strict=True)):
            weighted = F.conv2d((_unit(y) - _unit(y0)).square(), self.weights[f"lin{i}.model.1.weight"])
            if where is None:
                total += weighted.mean(dim=(1, 2, 3))
            else:
                resized = F.interpolate(weighted, where.shape[1:], mode="bilinear")[:, 0]
                chosen = where.to(self.device)
                total += (resized * chosen).sum(dim=(1, 2)) / chosen.sum(dim=(1, 2))
        return total

    def _features(self, image: Tensor) -> list[Tensor]:
        """Return the features y_l of each layer that is compared."""
        x = image.to(self.device)
        mean, deviation = (torch.tensor(values).to(x)[:, None, None] for values in (_MEAN, _DEVIATION))
        x = (2 * x - 1 - mean) / deviation
        features = []
        for i, layers in enumerate(_SLICES):
            for layer in layers:
                x = self._layer(x, i, layer)
            features.append(x)
        return features

    def _layer(self, x: Tensor, slice_index: int, layer: int) -> Tensor:
        """Apply one of SqueezeNet 1.1's `features`: a convolution, its ReLU, a pooling, or a fire module."""
        name = f"net.slices.{slice_index}.{layer}"
        if layer == 0:
            return self._conv(x, name, stride=2)
        if layer == 1:
            return x.relu()
        if layer in _POOLINGS:
            return F.max_pool2d(x, 3, 2, ceil_mode=True)
        squeezed = self._conv(x, f"{name}.squeeze").relu()
        expand1x1 = self._conv(squeezed, f"{name}.expand1x1")
        expand3x3 = self._conv(squeezed, f"{name}.expand3x3", padding=1)
        return torch.cat([expand1x1, expand3x3], dim=1).relu()

    def _conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride, padding)


def _unit(features: Tensor) -> Tensor:
    """Scale the features of each pixel to length 1."""
    return features / (features.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
