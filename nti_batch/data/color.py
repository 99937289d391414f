"""Converts decoded images of any mode to sRGB, as a viewer shows them."""

from io import BytesIO

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

NOTHING_VISIBLE = "image is transparent everywhere: give it a background, or leave it out"


class TransparentImageError(ValueError):
    """An image of which no pixel is visible."""


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to RGB in sRGB; transparent pixels show white.

    An ICC profile that fits the image decides its colours, or else the gamma of a PNG. Grey values of more than 8 bits
    are scaled (see `_grey8`). In a BMP that is transparent everywhere, alpha is unused, and the colours are taken.

    Raises:
        TransparentImageError: If every pixel is transparent.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _with_srgb_colours(_grey8(image), image.info)
    if not image.has_transparency_data:
        return _with_srgb_colours(image, image.info)
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    visible = alpha.getbbox() is not None
    if not visible and image.format != "BMP":
        raise TransparentImageError(NOTHING_VISIBLE)
    rgb = _with_srgb_colours(rgba.convert("RGB"), image.info)
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha) if visible else rgb


def _with_srgb_colours(image: Image.Image, info: dict[str | tuple[int, int], object]) -> Image.Image:
    """Convert an opaque image of 8 bits to RGB in sRGB."""
    if isinstance(profile := info.get("icc_profile"), bytes):
        return _from_profile(image, profile) or image.convert("RGB")
    gamma = info.get("gamma")
    if isinstance(gamma, float) and gamma > 0 and "srgb" not in info:
        return _from_gamma(image.convert("RGB"), gamma)
    return image.convert("RGB")


def _from_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert from the colours of an ICC profile; None if the profile is damaged or of another colour space."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = MODES[source.profile.xcolor_space.strip()]
        if (mode == "CMYK") != (image.mode == "CMYK"):
            return None
        return ImageCms.profileToProfile(image.convert(mode), source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, KeyError, OSError, ValueError):
        return None


def _from_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Convert values v with linear light v^(1 / gamma) to sRGB.

    Source: PNG specification (third edition), gAMA; IEC 61966-2-1 for the curve.
    """
    if abs(gamma / SRGB_GAMMA - 1) <= GAMMA_TOLERANCE:
        return image
    light = (np.arange(256) / 255) ** (1 / gamma)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return image.point(np.rint(255 * srgb).astype(int).tolist() * 3)


def _grey8(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits to 8.

    White is 2^bits - 1 where the format says so. TIFF's 32-bit values have no agreed white; here it is the first of 1
    (floats only), 255, 65535, 2^31 and 2^32 that no pixel exceeds. TIFFs whose white is zero are inverted.
    """
    tags = getattr(image, "tag_v2", {})
    bits, sample_format = tags.get(BITSPERSAMPLE, (16,))[0], tags.get(SAMPLEFORMAT, (UNSIGNED,))[0]
    values = np.asarray(image)
    if bits == 32 and image.mode == "I" and sample_format == UNSIGNED:
        values = values.view(np.uint32)
    grey = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    if bits <= 16:
        white = 2.0 ** (bits - (sample_format == SIGNED)) - 1
    else:
        levels = (1.0,) * (image.mode == "F") + (255.0, 65535.0, 2.0**31)
        white = next((level for level in levels if grey.max() <= level), 2.0**32)
    grey = grey.clip(0, white)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
        grey = white - grey
    grey8 = np.rint(grey * (255 / white)).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        transparent = values == key
        if transparent.all():
            raise TransparentImageError(NOTHING_VISIBLE)
        grey8[transparent] = 255
    return Image.fromarray(grey8)
