"""Converts decoded images of any mode to sRGB, as a viewer shows them."""

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

SRGB_GAMMA = 1 / 2.2
"""Gamma of a PNG whose values need no conversion."""

GAMMA_TOLERANCE = 0.05
"""Relative difference of gammas that is not corrected; libpng's PNG_GAMMA_THRESHOLD."""

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for the colour space of an ICC profile."""

UNSIGNED, SIGNED = 1, 2
"""Values of TIFF's SampleFormat."""

MAX_PROFILE_BYTES = 1 << 22
"""Largest ICC profile that is used; those of printers have up to 3 MB."""

TILE_SIDE = 1024

NOTHING_VISIBLE = "image is transparent everywhere: give it a background, or leave it out"


class TransparentImageError(ValueError):
    """An image of which no pixel is visible."""


Converter = Callable[[Image.Image], Image.Image]
"""Converts an image, or a part of it, to RGB in sRGB."""


def srgb_converter(image: Image.Image) -> Converter:
    """Return what converts a loaded image of any mode to RGB in sRGB, as a whole or part by part.

    Transparent pixels show white. An ICC profile that fits the image decides its colours, or else the gamma of a PNG.
    Grey values of more than 8 bits are scaled (see `_grey_converter`). In a BMP that is transparent everywhere, alpha
    is unused, and the colours are taken.

    Raises:
        TransparentImageError: If every pixel is transparent.
    """
    if image.mode.startswith("I") or image.mode == "F":
        colours, grey8 = _colour_converter("L", image.info), _grey_converter(image)
        return lambda part: colours(grey8(part))
    if not image.has_transparency_data:
        return _colour_converter(image.mode, image.info)
    colours = _colour_converter("RGB", image.info)
    if any(_alpha(part).getbbox() for part in tiles(image)):
        return lambda part: _over_white(colours(part.convert("RGBA").convert("RGB")), _alpha(part))
    if image.format != "BMP":
        raise TransparentImageError(NOTHING_VISIBLE)
    return lambda part: colours(part.convert("RGBA").convert("RGB"))


def tiles(image: Image.Image) -> Iterator[Image.Image]:
    """Cut an image into tiles, so that what is made of them takes little memory at a time."""
    for box in tile_boxes((0, 0, *image.size), TILE_SIDE, TILE_SIDE):
        yield image.crop(box)


def tile_boxes(box: tuple[int, int, int, int], width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a box (left, top, right, bottom) into rectangles, smaller ones at its right and bottom edges."""
    left, top, right, bottom = box
    for y in range(top, bottom, height):
        for x in range(left, right, width):
            yield x, y, min(x + width, right), min(y + height, bottom)


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB, without a copy if it is RGB."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _over_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)


def _colour_converter(mode: str, info: dict[str | tuple[int, int], Any]) -> Converter:
    """Return what converts opaque images of 8 bits to RGB in sRGB."""
    if isinstance(profile := info.get("icc_profile"), bytes):
        return _profile_converter(mode, profile) or as_rgb
    gamma = info.get("gamma")
    if isinstance(gamma, float) and gamma > 0 and "srgb" not in info:
        return _gamma_converter(gamma)
    return as_rgb


def _profile_converter(mode: str, profile: bytes) -> Converter | None:
    """Convert from the colours of an ICC profile; None if it is too large, damaged or of another colour space."""
    if len(profile) > MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        source_mode = MODES[source.profile.xcolor_space.strip()]
        if (source_mode == "CMYK") != (mode == "CMYK"):
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), source_mode, "RGB")
    except (ImageCms.PyCMSError, KeyError, OSError, ValueError):
        return None

    def convert(image: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(image.convert(source_mode), transform)
        assert converted is not None
        return converted

    return convert


def _gamma_converter(gamma: float) -> Converter:
    """Convert values v with linear light v^(1 / gamma) to sRGB.

    Source: PNG specification (third edition), gAMA; IEC 61966-2-1 for the curve.
    """
    if abs(gamma / SRGB_GAMMA - 1) <= GAMMA_TOLERANCE:
        return as_rgb
    light = (np.arange(256) / 255) ** (1 / gamma)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table = np.rint(255 * srgb).astype(int).tolist() * 3
    return lambda image: as_rgb(image).point(table)


def _grey_converter(image: Image.Image) -> Converter:
    """Return what scales grey values of more than 8 bits to 8.

    White is 2^bits - 1 where the format says so. TIFF's 32-bit values have no agreed white; here it is the first of 1
    (floats only), 255, 65535, 2^31 and 2^32 that no pixel exceeds. TIFFs whose white is zero are inverted.
    """
    tags = getattr(image, "tag_v2", {})
    bits, sample_format = tags.get(BITSPERSAMPLE, (16,))[0], tags.get(SAMPLEFORMAT, (UNSIGNED,))[0]
    white_is_zero = tags.get(PHOTOMETRIC_INTERPRETATION) == 0
    key = image.info.get("transparency")

    def values_of(part: Image.Image) -> np.ndarray[Any, Any]:
        values: np.ndarray[Any, Any] = np.asarray(part)
        return values.view(np.uint32) if bits == 32 and part.mode == "I" and sample_format == UNSIGNED else values

    def finite(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        numbers: np.ndarray[Any, Any] = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
        return numbers

    if bits <= 16:
        white = 2.0 ** (bits - (sample_format == SIGNED)) - 1
    else:
        largest = max(finite(values_of(part)).max() for part in tiles(image))
        levels = (1.0,) * (image.mode == "F") + (255.0, 65535.0, 2.0**31)
        white = next((level for level in levels if largest <= level), 2.0**32)
    if isinstance(key, int) and all((values_of(part) == key).all() for part in tiles(image)):
        raise TransparentImageError(NOTHING_VISIBLE)

    def convert(part: Image.Image) -> Image.Image:
        values = values_of(part)
        grey = finite(values).clip(0, white)
        if white_is_zero:
            grey = white - grey
        grey8 = np.rint(grey * (255 / white)).astype(np.uint8)
        if isinstance(key, int):
            grey8[values == key] = 255
        return Image.fromarray(grey8)

    return convert
