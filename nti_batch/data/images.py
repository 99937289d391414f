"""Bytes of an image file -> RGB pixels of one size, whatever kind of file it is.

Every refusal is a ValueError that says why, so that one bad file becomes one failed row.
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
"""What is read. Pillow knows more, some of which start other programs (EPS: Ghostscript)."""


MAX_PIXELS = 178_956_970
"""Largest width times height; Pillow's own limit against decompression bombs."""


_SETTINGS = threading.Lock()


def decode_image(data: bytes, height: int, width: int) -> Tensor:
    """Decode an image file, turn it upright, crop its centre and resize.

    Of an animation the first frame is taken. Transparent pixels show white. Grey values of more
    than 8 bits are scaled (see `_grey8`).

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
        picture = ImageOps.fit(_open_upright(data), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] as uint8, in the same shape."""
    return (pictures * 255).round().byte()


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels, uint8 [3, height, width], as Pillow has them."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


@contextmanager
def _pillow_settings() -> Iterator[None]:
    """Decode under fixed settings, without warnings; they are global to the process, hence the lock."""
    with _SETTINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        # Pillow warns above its setting and refuses above twice its setting
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = MAX_PIXELS // 2, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = found


def _open_upright(data: bytes) -> Image.Image:
    """Open the whole picture as RGB, or raise a ValueError."""
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
    """Say what a file that is no image seems to be."""
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

    White is 65535 where the file says so. TIFF's 32-bit values have no agreed white: it is the
    first of 1 (floats only), 255, 65535 and 2^31 that no pixel exceeds.
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
