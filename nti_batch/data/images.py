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
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from nti_batch.data.color import TransparentImageError, to_srgb

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are read. Pillow knows more, some of which start other programs (EPS: Ghostscript)."""


MAX_PIXELS = 178_956_970
"""Largest number of pixels; Pillow's own limit against decompression bombs."""


UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright."""


_PILLOW_LOCK = threading.Lock()


def decode_image(data: bytes, height: int, width: int) -> Tensor:
    """Decode an image file, convert it to sRGB, turn it upright, crop its centre and resize.

    The first frame stands for an animation. Colours are those of `to_srgb`.

    Args:
        data: The file's content.
        height: Height to crop and resize to, in pixels.
        width: Width to crop and resize to, in pixels.

    Returns:
        uint8, [3, height, width].

    Raises:
        ValueError: The data is no whole image of a format in `FORMATS`, has too many pixels, or shows nothing.
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
    """Decode the whole image as sRGB, turned upright.

    Raises:
        ValueError: If the image cannot be decoded.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            image.load()
            return _turn_upright(to_srgb(image), _orientation(image))
    except TransparentImageError:
        raise
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


def _orientation(image: Image.Image) -> object:
    """Return the EXIF orientation of a loaded image; 1, which is upright, if it has none or its EXIF is broken.

    Pillow turns a TIFF while it loads it, and removes the tag.
    """
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    # broken EXIF makes Pillow raise nearly anything
    except Exception:
        return 1


def _turn_upright(image: Image.Image, orientation: object) -> Image.Image:
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _describe_start(data: bytes) -> str:
    """Describe what a file that is no image seems to be."""
    kind = "looks like an HTML or XML page, " if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else ""
    return f"{kind}starts with {data[:24]!r}"
