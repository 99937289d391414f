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
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from nti_batch.data.color import TILE_SIDE, Converter, TransparentImageError, as_rgb, srgb_converter, tile_boxes
from nti_batch.data.fit import fit_image
from nti_batch.data.image_memory import MIB, decode_at_scale, decoding_bytes, smaller_scale, stored_bytes
from nti_batch.records import Fit, Original

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are read. Pillow knows more, some of which start other programs (EPS: Ghostscript)."""


try:
    from pillow_heif import register_heif_opener
except ImportError:
    """The extra `heic` is not installed."""
else:
    register_heif_opener(thumbnails=False)
    FORMATS += ("HEIF",)


HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


MAX_PIXELS = 178_956_970
"""Largest number of pixels; Pillow's own limit against decompression bombs."""


MAX_MEMORY = 512 * MIB
"""Memory that decoding an image may take, by default, beside the file and the result."""


WORKING_MEMORY = 64 * MIB
"""Part of it that converting and averaging takes."""


MAX_FACTOR = 256
"""Largest number of pixels, in width and in height, that become one before the resize."""


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


SIDEWAYS = tuple(UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
"""Turns that exchange width and height."""


_PILLOW_LOCK = threading.Lock()


def decode_image(
    data: bytes, height: int, width: int, max_memory: int | None = MAX_MEMORY, fit: Fit = "crop"
) -> Tensor:
    """Decode an image file, as `decode_original` does.

    Returns:
        uint8, [3, height, width].
    """
    return decode_original(data, height, width, max_memory, fit)[0]


def decode_original(
    data: bytes, height: int, width: int, max_memory: int | None = MAX_MEMORY, fit: Fit = "crop"
) -> tuple[Tensor, Original]:
    """Decode an image file, convert it to sRGB, turn it upright and fit it to a size.

    The first frame stands for an animation. Colours are those of `srgb_converter`. An image that would take more than
    `MAX_MEMORY` is averaged over squares as it is decoded or converted, down to no less than twice the size asked for.

    Args:
        data: The file's content.
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        max_memory: Bytes that decoding may take; None allows what `MAX_PIXELS` allows.
        fit: How the image is fitted to height and width.

    Returns:
        The image, uint8 [3, height, width], and the size that it had.

    Raises:
        ValueError: The data is no whole image of a format in `FORMATS`, is too large, or shows nothing.
    """
    if not data:
        raise ValueError("image is empty (0 bytes)")
    with _pillow_settings():
        upright, original = _open_upright(data, (width, height), max_memory, fit)
        image = fit_image(upright, original, (width, height))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), original


def to_bytes(images: Tensor) -> Tensor:
    """Round images in [0, 1] to uint8, in the same shape."""
    return (images * 255).round().byte()


def to_image(pixels: Tensor) -> Image.Image:
    """Convert pixels, uint8 [3, height, width], to a Pillow image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


class ImageTooLargeError(ValueError):
    """An image that takes too much memory to decode."""


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


def _open_upright(
    data: bytes, shape: tuple[int, int], max_memory: int | None, fit: Fit
) -> tuple[Image.Image, Original]:
    """Decode the image as sRGB, turned upright; it may be smaller than the original.

    Raises:
        ValueError: If the image cannot be decoded.
    """
    try:
        image, (width, height), turn = _open_srgb(data, shape, max_memory, fit)
        if turn in SIDEWAYS:
            width, height = height, width
        return image if turn is None else image.transpose(turn), Original(height, width, fit)
    except (TransparentImageError, ImageTooLargeError):
        raise
    except UnidentifiedImageError:
        raise ValueError(_describe_unknown(data)) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"image has too many pixels, scale it down first: {error}") from error
    # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, MemoryError ...
    except Exception as error:
        raise ValueError(
            f"image of {len(data)} bytes is damaged, truncated or of an unknown kind: {type(error).__name__}: {error}"
        ) from error


def _open_srgb(
    data: bytes, shape: tuple[int, int], max_memory: int | None, fit: Fit
) -> tuple[Image.Image, tuple[int, int], Image.Transpose | None]:
    """Decode the image as sRGB; return it with its own size and what turns it upright."""
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        size = _load(image, data, max(shape), max_memory, fit)
        turn, convert = _turn(orientation_of(image)), srgb_converter(image)
        pixels, is_ready = image.width * image.height, image.mode == "RGB" and convert is as_rgb
        whole = max(stored_bytes(image) + 4 * pixels * (not is_ready), 8 * pixels * (turn is not None))
        box, factor = (0, 0, *image.size), (1, 1)
        if whole > MAX_MEMORY - WORKING_MEMORY:
            turned = shape[::-1] if turn in SIDEWAYS else shape
            box = _centre(image.size, turned) if fit == "crop" else box
            factor = _factor((box[2] - box[0], box[3] - box[1]), turned, fit)
        elif is_ready:
            return image, size, turn
        return _convert_by_tiles(image, convert, box, factor), size, turn


def _load(image: ImageFile.ImageFile, data: bytes, side: int, max_memory: int | None, fit: Fit) -> tuple[int, int]:
    """Decode an opened image, at a smaller scale if it is too large and its format has one; return its own size.

    Raises:
        ImageTooLargeError: If that takes more memory than is allowed.
    """
    limiting = max(image.size) if fit == "pad" else min(image.size)
    scale = smaller_scale(image, data, MAX_MEMORY - WORKING_MEMORY, limiting / (2 * side))
    needed = decoding_bytes(image, data, scale) + WORKING_MEMORY
    if max_memory is not None and needed > max_memory:
        raise ImageTooLargeError(
            f"image of {image.width} x {image.height} pixels ({image.format}, {image.mode}) takes about "
            f"{needed / MIB:.0f} MiB to decode, allowed: {max_memory / MIB:.0f}; scale it down, or raise "
            "--data.max_image_memory"
        )
    if scale == 1:
        image.load()
        # Pillow has turned a TIFF
        return image.size
    size = image.size
    decode_at_scale(image, scale)
    image.load()
    return size


def _centre(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest box about the centre that has at least the shape; all are (width, height)."""
    width, height = min(size[0], -(-size[1] * shape[0] // shape[1])), min(size[1], -(-size[0] * shape[1] // shape[0]))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _factor(size: tuple[int, int], shape: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """Return the largest divisors of width and height at which an image still has twice the pixels of the result."""
    if fit == "stretch":
        widths, heights = (most // (2 * side) for most, side in zip(size, shape, strict=True))
        return _bounded(widths), _bounded(heights)
    factor = _bounded((max(size) if fit == "pad" else min(size)) // (2 * max(shape)))
    factor = min(factor, *size)
    return factor, factor


def _bounded(factor: int) -> int:
    return min(MAX_FACTOR, max(1, factor))


def _convert_by_tiles(
    image: Image.Image, convert: Converter, box: tuple[int, int, int, int], factor: tuple[int, int]
) -> Image.Image:
    """Convert a box of an image in bounded memory; a rectangle of `factor` pixels becomes one, their mean."""
    left, top, right, bottom = box
    result = Image.new("RGB", (max(1, (right - left) // factor[0]), max(1, (bottom - top) // factor[1])))
    whole_box = left, top, left + result.width * factor[0], top + result.height * factor[1]
    for tile in tile_boxes(whole_box, *(TILE_SIDE // each * each for each in factor)):
        part = convert(image.crop(tile))
        place = (tile[0] - left) // factor[0], (tile[1] - top) // factor[1]
        result.paste(part if factor == (1, 1) else part.reduce(factor), place)
    return result


def orientation_of(image: Image.Image) -> object:
    """Return the EXIF orientation of a loaded image; 1, which is upright, if it has none or its EXIF is broken.

    Pillow turns a TIFF while it loads it, and removes the tag.
    """
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    # broken EXIF makes Pillow raise nearly anything
    except Exception:
        return 1


def _turn(orientation: object) -> Image.Transpose | None:
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _describe_unknown(data: bytes) -> str:
    """Describe a file that is no image of a known format."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS and "HEIF" not in FORMATS:
        return "image is a HEIC file, which needs pillow-heif: pip install 'nti-batch[heic]'"
    kind = "looks like an HTML or XML page, " if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else ""
    formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    return f"image is not a whole {formats} file: {kind}starts with {data[:24]!r}"
