"""Decodes image files of many formats into RGB pixels of one size.

A file that cannot be decoded raises a ValueError with the reason, so that one bad file becomes one failed row.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are read. Pillow knows more, some of which start other programs (EPS: Ghostscript)."""


MAX_PIXELS = 178_956_970
"""Largest number of pixels; Pillow's own limit against decompression bombs."""


_PILLOW_LOCK = threading.Lock()


def decode_image(data: bytes, height: int, width: int) -> Tensor:
    """Decode an image file, turn it upright, crop its centre and resize.

    The first frame stands for an animation. Transparent pixels show white. Grey values of more than 8 bits are scaled
    (see `_grey8`).

    Args:
        data: The file's content.
        height: Height to crop and resize to, in pixels.
        width: Width to crop and resize to, in pixels.

    Returns:
        uint8, [3, height, width].

    Raises:
        ValueError: The data is no whole image of a format in `FORMATS`, or has too many pixels.
    """
    if not data:
        raise ValueError("image is empty (0 bytes)")
    with _pillow_settings():
        image = ImageOps.fit(_open_upright(data), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_bytes(images: Tensor) -> Tensor:
    """Round images in [0, 1] to uint8, in the same shape."""
    return (images * 255).round().byte()


def to_image(pixels: Tensor) -> Image.Image:
    """Convert pixels, uint8 [3, height, width], to a Pillow image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


@contextmanager
def _pillow_settings() -> Iterator[None]:
    """Fix Pillow's settings and silence its warnings; both are global to the process, hence the lock."""
    with _PILLOW_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        # Pillow warns above its setting and refuses above twice its setting
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = MAX_PIXELS // 2, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _open_upright(data: bytes) -> Image.Image:
    """Decode the whole image as RGB, turned upright.

    Raises:
        ValueError: If the image cannot be decoded.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return _to_rgb(ImageOps.exif_transpose(image), image.format or "")
    except UnidentifiedImageError:
        raise ValueError(
            f"image is not a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file: {_describe_start(data)}"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"image has too many pixels, scale it down first: {error}") from error
    # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, MemoryError ...
    except Exception as error:
        raise ValueError(
            f"image of {len(data)} bytes is damaged, truncated or of an unknown kind: {type(error).__name__}: {error}"
        ) from error


def _describe_start(data: bytes) -> str:
    """Describe what a file that is no image seems to be."""
    kind = "looks like an HTML or XML page, " if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else ""
    return f"{kind}starts with {data[:24]!r}"


def _to_rgb(image: Image.Image, file_format: str) -> Image.Image:
    """Convert from any mode; transparent pixels show white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _grey8(image, file_format).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")


def _grey8(image: Image.Image, file_format: str) -> Image.Image:
    """Scale grey values of 16 or 32 bits to 8.

    White is 65535 where the format says so. TIFF's 32-bit values have no agreed white; here it is the first of 1
    (floats only), 255, 65535 and 2^31 that no pixel exceeds.
    """
    grey = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    if image.mode.startswith("I;16") or file_format in ("PNG", "PPM"):
        white = 65535.0
    else:
        levels = (1.0,) * (image.mode == "F") + (255.0, 65535.0)
        white = next((level for level in levels if grey.max() <= level), 2.0**31)
    grey8 = np.rint(grey.clip(0, white) * (255 / white)).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        grey8[grey == key] = 255
    return Image.fromarray(grey8)
