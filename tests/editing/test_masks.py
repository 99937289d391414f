"""Masks against loops over pixels, and against decoded images."""

import io
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from nti_batch.data.fit import without_padding
from nti_batch.data.images import decode_image, decode_original
from nti_batch.editing.masks import check_mask, decode_runs, encode_runs, mask_pixels
from nti_batch.records import Fit, Mask

SIZES = st.integers(1, 12)


def random_pixels(height: int, width: int, seed: int, share: float = 0.3) -> Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share


def touches(pixels: Tensor, top: float, left: float, bottom: float, right: float) -> bool:
    """Return whether a pixel that is set shares some area with a rectangle."""
    return any(
        min(i + 1, bottom) - max(i, top) > 1e-9 and min(j + 1, right) - max(j, left) > 1e-9
        for i, j in pixels.nonzero().tolist()
    )


def test_runs_are_counted_row_by_row():
    assert decode_runs(Mask((1, 2, 5, 1), 2, 3)).tolist() == [[False, True, True], [False, False, True]]


@given(SIZES, SIZES, st.integers(0, 999), st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_decoding_inverts_encoding(height: int, width: int, seed: int, share: float):
    pixels = random_pixels(height, width, seed, share)
    mask = encode_runs(pixels)
    assert (mask.height, mask.width) == (height, width)
    assert torch.equal(decode_runs(mask), pixels)
    assert all(length > 0 for length in mask.runs[1::2])


@given(SIZES, SIZES, SIZES, SIZES, st.integers(0, 999))
def test_a_pixel_is_inside_if_its_part_of_the_centre_touches_the_mask(
    rows: int, columns: int, height: int, width: int, seed: int
):
    pixels = random_pixels(rows, columns, seed)
    scale = min(rows / height, columns / width)
    top, left = (rows - height * scale) / 2, (columns - width * scale) / 2
    expected = [
        [
            touches(pixels, top + i * scale, left + j * scale, top + (i + 1) * scale, left + (j + 1) * scale)
            for j in range(width)
        ]
        for i in range(height)
    ]
    assert mask_pixels(encode_runs(pixels), height, width).tolist() == expected


def white_spot(rng: random.Random, height: int, width: int) -> tuple[torch.Tensor, bytes]:
    """A square of 4 x 4 white pixels on black: its pixels, and the image as PNG."""
    top, left = rng.randrange(height - 4), rng.randrange(width - 4)
    spot = torch.zeros(height, width, dtype=torch.bool)
    spot[top : top + 4, left : left + 4] = True
    file = io.BytesIO()
    Image.fromarray((spot * 255).byte().numpy()).save(file, "PNG")
    return spot, file.getvalue()


@pytest.mark.parametrize(("height", "width"), [(24, 24), (40, 24), (24, 60)])
def test_a_mask_is_cropped_and_resized_as_its_image(height: int, width: int):
    """A white spot on black, decoded as the job decodes it, lies inside the spot's mask."""
    rng = random.Random(height * width)
    for _ in range(10):
        spot, png = white_spot(rng, height, width)
        bright = decode_image(png, 12, 12)[0] > 128
        inside = mask_pixels(encode_runs(spot), 12, 12)
        assert (inside | ~bright).all()
        assert inside.sum() <= math.ceil(4 / 2 + 1) ** 2


def test_a_mask_of_the_images_size_is_unchanged():
    pixels = random_pixels(9, 7, 0)
    assert torch.equal(mask_pixels(encode_runs(pixels), 9, 7), pixels)


def test_an_odd_number_of_values_is_refused():
    with pytest.raises(ValueError, match="the mask's runs are 3 numbers, allowed: pairs"):
        mask_pixels(Mask((0, 1, 2), 4, 4), 4, 4)


@pytest.mark.parametrize("runs", [(15, 2), (-1, 1), (3, -1), (16, 1)])
def test_a_run_outside_the_grid_is_refused(runs: tuple[int, int]):
    with pytest.raises(ValueError, match=rf"a run of {runs[1]} pixels from {runs[0]} on, allowed: runs within the 16"):
        mask_pixels(Mask(runs, 4, 4), 4, 4)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, -1)])
def test_a_grid_without_pixels_is_refused(size: tuple[int, int]):
    with pytest.raises(ValueError, match=rf"grid has height {size[0]} and width {size[1]}, allowed: 1 to 16384"):
        check_mask(Mask((), *size))


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (48, 24), (24, 60)])
def test_a_mask_is_fitted_as_its_image_without_padding(fit: Fit, height: int, width: int):
    """A white spot on black lies inside the spot's mask on the part that shows the image."""
    rng = random.Random(height * width)
    for _ in range(10):
        spot, png = white_spot(rng, height, width)
        decoded, original = decode_original(png, 12, 12, fit=fit)
        bright = without_padding(decoded, original)[0] > 128
        inside = mask_pixels(encode_runs(spot), bright.shape[0], bright.shape[1], fit)
        assert (inside | ~bright).all()
        assert inside.sum() <= math.ceil(4 * 12 / height + 1) * math.ceil(4 * 12 / width + 1)
