"""Measures of image quality against plain loops, torchmetrics' own, and closed forms."""

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from nti_batch.scores.metrics import mse, psnr, ssim


def images(count: int = 2, height: int = 17, width: int = 23, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def some(count: int = 2, height: int = 17, width: int = 23) -> Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(9)) < 0.3


def mirrored(i: int, length: int) -> int:
    """Mirror an index outside to one inside; the border itself is not repeated."""
    return -i if i < 0 else 2 * (length - 1) - i if i >= length else i


def similarity(x: Tensor, y: Tensor, row: int, column: int) -> float:
    """Sum up the SSIM of two planes at one pixel as the paper writes it."""
    window = {}
    for i in range(-5, 6):
        for j in range(-5, 6):
            place = mirrored(row + i, x.shape[0]), mirrored(column + j, x.shape[1])
            window[i, j] = math.exp(-(i * i + j * j) / (2 * 1.5**2)), x[place].item(), y[place].item()
    total = sum(w for w, _, _ in window.values())
    mean_x = sum(w * a for w, a, _ in window.values()) / total
    mean_y = sum(w * b for w, _, b in window.values()) / total
    var_x = sum(w * (a - mean_x) ** 2 for w, a, _ in window.values()) / total
    var_y = sum(w * (b - mean_y) ** 2 for w, _, b in window.values()) / total
    cov = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in window.values()) / total
    c1, c2 = 0.0001, 0.0009
    return (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def test_errors_of_chosen_pixels_are_those_of_a_loop():
    a, b, where = images(seed=1), images(seed=2), some()
    for k in range(2):
        squares = [(p - q) ** 2 for p, q in zip(a[k][:, where[k]].flatten(), b[k][:, where[k]].flatten(), strict=True)]
        error = float(sum(squares)) / len(squares)
        assert mse(a, b, where)[k].item() == pytest.approx(error, rel=1e-5)
        assert psnr(a, b, where)[k].item() == pytest.approx(-10 * math.log10(error), rel=1e-5)


def test_similarity_is_the_papers_formula():
    a, b = images(1, 13, 9, seed=1), images(1, 13, 9, seed=2)
    where = some(1, 13, 9)
    values = [[similarity(a[0, c], b[0, c], int(i), int(j)) for c in range(3)] for i, j in where[0].nonzero()]
    assert ssim(a, b, where).item() == pytest.approx(float(torch.tensor(values).mean()), abs=1e-5)


def test_similarity_of_whole_images_is_that_of_torchmetrics():
    a = images(seed=1)
    b = (a + 0.2 * images(seed=2)).clamp(0, 1)
    theirs = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    assert isinstance(theirs, torch.Tensor)
    assert torch.allclose(ssim(a, b), theirs, atol=1e-5)


def test_all_pixels_chosen_are_the_whole_image():
    a, b = images(seed=1), images(seed=2)
    everywhere = torch.ones(2, 17, 23, dtype=torch.bool)
    for measure in (mse, psnr, ssim):
        assert torch.allclose(measure(a, b, everywhere), measure(a, b))


def test_equal_images_have_the_best_values():
    a = images()
    for where in (None, some()):
        assert mse(a, a, where).tolist() == [0, 0]
        assert psnr(a, a, where).tolist() == [100, 100]
        assert ssim(a, a, where).tolist() == [1, 1]


def test_flat_images_have_closed_forms():
    a, b = torch.full((1, 3, 12, 12), 0.25), torch.full((1, 3, 12, 12), 0.75)
    assert mse(a, b).item() == 0.25
    assert psnr(a, b).item() == pytest.approx(10 * math.log10(4))
    assert ssim(a, b).item() == pytest.approx((2 * 0.1875 + 1e-4) / (0.625 + 1e-4), abs=1e-4)


def test_pixels_that_are_not_chosen_count_for_nothing_even_where_they_are_nan():
    a = images()
    b, where = a.clone(), some()
    b[~where[:, None].expand_as(b)] = torch.nan
    assert mse(a, b, where).tolist() == [0, 0]


def test_no_chosen_pixel_gives_nan():
    a, nowhere = images(), torch.zeros(2, 17, 23, dtype=torch.bool)
    for measure in (mse, psnr, ssim):
        assert measure(a, a, nowhere).isnan().all()


def test_ssim_of_a_thin_image_is_defined():
    image = torch.rand(1, 3, 2, 40, generator=torch.Generator().manual_seed(0))
    assert ssim(image, image).item() == pytest.approx(1)
    assert ssim(image, 1 - image).item() < 0.5
