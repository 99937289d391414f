"""Images that are not square: how they become one of the run's size, and are put back."""

import io

import numpy as np
import pytest
import torch
from helpers.image_files import encode, gradient
from PIL import Image, ImageOps

from nti_batch.data import images
from nti_batch.data.fit import is_cropped, put_back, target_box, without_padding
from nti_batch.data.images import decode_image, decode_original, to_image
from nti_batch.records import Fit, Original

FITS: tuple[Fit, ...] = ("crop", "pad", "stretch")
WIDE = gradient(40, 100)


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (33, 64), (64, 64), (7, 500)])
def test_crop_is_what_it_was(size: tuple[int, int]):
    expected = ImageOps.fit(gradient(*size), (48, 32), Image.Resampling.LANCZOS)
    assert torch.equal(decode_image(encode(gradient(*size)), 32, 48), pixels_of(expected))


def test_pad_shows_the_whole_image_on_black():
    decoded, original = decode_original(encode(WIDE), 60, 50, fit="pad")
    assert original == Original(40, 100, "pad")
    assert target_box("pad", (100, 40), (50, 60)) == (0, 20, 50, 40)
    assert not decoded[:, :20].any() and not decoded[:, 40:].any()
    shown = pixels_of(WIDE.resize((50, 20), Image.Resampling.LANCZOS))
    assert torch.equal(decoded[:, 20:40], shown)
    assert torch.equal(without_padding(decoded, original), shown)


def test_stretch_shows_the_whole_image_everywhere():
    decoded, original = decode_original(encode(WIDE), 60, 50, fit="stretch")
    assert torch.equal(decoded, pixels_of(WIDE.resize((50, 60), Image.Resampling.LANCZOS)))
    assert torch.equal(without_padding(decoded, original), decoded)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("file_format", ["JPEG", "TIFF", "PNG"])
def test_the_original_is_that_of_the_upright_image(fit: Fit, file_format: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(WIDE, file_format, exif=exif)
    assert decode_original(data, 16, 16, fit=fit)[1] == Original(100, 40, fit)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(576, 768), (900, 30)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "JPEG2000"])
@pytest.mark.parametrize("is_turned", [False, True])
def test_an_image_that_is_averaged_keeps_its_size_and_nearly_its_pixels(
    fit: Fit, size: tuple[int, int], file_format: str, is_turned: bool, monkeypatch: pytest.MonkeyPatch
):
    exif = Image.Exif()
    exif[0x0112] = 6 if is_turned and file_format != "JPEG2000" else 1
    data = encode(gradient(*size), file_format, exif=exif, **({"quality": 95} if file_format == "JPEG" else {}))
    whole, expected = decode_original(data, 48, 64, fit=fit)
    monkeypatch.setattr(images, "MAX_MEMORY", images.WORKING_MEMORY + 1)
    averaged, original = decode_original(data, 48, 64, max_memory=None, fit=fit)
    assert original == expected
    assert (averaged.int() - whole.int()).abs().float().mean() < 2


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (3, 3), (1, 1)])
def test_extreme_shapes_have_at_least_a_pixel(fit: Fit, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    image = Image.new("RGB", size, "white")
    monkeypatch.setattr(images, "MAX_MEMORY", images.WORKING_MEMORY + 1)
    decoded, original = decode_original(encode(image), 16, 24, max_memory=None, fit=fit)
    assert without_padding(decoded, original).min() == 255
    assert min(without_padding(decoded, original).shape) > 0
    assert put_back(to_image(decoded), original, image).size == size


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (64, 64), (61, 97)])
def test_what_is_put_back_lies_where_it_was(fit: Fit, height: int, width: int):
    """A fitted image that is put back is the original again, up to the resize; what was cropped away is untouched."""
    source = gradient(height, width)
    decoded, original = decode_original(encode(source), 64, 64, fit=fit)
    cropped = is_cropped(original, (64, 64))
    assert cropped == (fit == "crop" and height != width)
    back = put_back(to_image(decoded), original, source if cropped else None)
    assert back.size == source.size
    difference = (pixels_of(back).int() - pixels_of(source).int()).abs().float()
    assert difference.mean() < 3
    if cropped:
        black = put_back(Image.new("RGB", (64, 64)), original, source)
        changed = np.asarray(black) != np.asarray(source)
        kept = abs(height - width) // 2
        edge = changed[: kept - 1] if height > width else changed[:, : kept - 1]
        assert not edge.any() and changed.any()


def test_an_image_of_the_size_asked_for_is_decoded_unchanged():
    assert torch.equal(decode_image(encode(WIDE), 40, 100, None, "stretch"), pixels_of(WIDE))


def test_the_file_of_an_animation_is_one_image():
    stream = io.BytesIO()
    WIDE.save(stream, "GIF", save_all=True, append_images=[WIDE.rotate(180)])
    assert decode_original(stream.getvalue(), 8, 8, fit="pad")[1] == Original(40, 100, "pad")
