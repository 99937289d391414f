"""Memory that decoding an image takes, known from its header, and smaller sizes that a file can be decoded in."""

from PIL import ExifTags, ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, ROWSPERSTRIP, SAMPLESPERPIXEL, TILELENGTH, TILEWIDTH

MIB = 1 << 20


STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
"""Bytes that Pillow stores for a pixel, by mode; 4 for the others."""


DECODED_BYTES = {"WEBP": 17, "AVIF": 16}
"""Bytes that a decoder and Pillow take for a pixel together, measured; formats without an entry take what is stored."""


JPEG2000_BYTES = 7
"""Bytes for each sample of a JPEG 2000, likewise."""


def stored_bytes(image: ImageFile.ImageFile) -> int:
    """Bytes of the decoded image."""
    return image.width * image.height * STORED_BYTES.get(image.mode, 4)


def decoding_bytes(image: ImageFile.ImageFile, data: bytes, scale: int = 1) -> int:
    """Largest number of bytes that decoding takes, the file itself not counted.

    Args:
        image: The opened image, not loaded yet.
        data: Content of the file.
        scale: Divisor of the width and height to decode at.
    """
    pixels, stored = image.width * image.height, stored_bytes(image)
    match image.format:
        case "JPEG" | "MPO":
            return stored // scale**2 + _jpeg_coefficients(image, data)
        case "JPEG2000":
            return pixels // scale**2 * JPEG2000_BYTES * len(image.getbands())
        case "TIFF":
            # Pillow turns a TIFF upright while it loads it
            is_turned: bool = image.tag_v2.get(ExifTags.Base.Orientation, 1) != 1  # type: ignore[attr-defined]
            return stored * (1 + is_turned) + _tiff_block(image)
        case "HEIF":
            is_common = image.info.get("bit_depth") == 8 and image.info.get("chroma") == 420
            return pixels * (9 if is_common else 18)
        case "PPM" | "BMP":
            # plain text, and BMP's run lengths, are decoded in Python
            return stored if image.tile and image.tile[0].codec_name == "raw" else 3 * stored
    return pixels * DECODED_BYTES[image.format] if image.format in DECODED_BYTES else stored


def smaller_scale(image: ImageFile.ImageFile, data: bytes, max_bytes: int, max_scale: float) -> int:
    """Find the least divisor of width and height at which decoding fits; 1 if none does, or the format has none."""
    if image.format not in ("JPEG", "MPO", "JPEG2000"):
        return 1
    scales = [scale for scale in (1, 2, 4, 8) if scale <= max_scale or scale == 1]
    return next((scale for scale in scales if decoding_bytes(image, data, scale) <= max_bytes), 1)


def decode_at_scale(image: ImageFile.ImageFile, scale: int) -> None:
    """Let `load` decode an image at a smaller scale."""
    if image.format == "JPEG2000":
        image.reduce = scale.bit_length() - 1  # type: ignore[method-assign, assignment]
    else:
        image.draft(image.mode, (image.width // scale, image.height // scale))


def _jpeg_coefficients(image: ImageFile.ImageFile, data: bytes) -> int:
    """Bytes of the coefficients, which libjpeg keeps if a component is not whole in the first scan."""
    layers: list[tuple[int, int, int, int]] = image.layer  # type: ignore[attr-defined]
    if not image.info.get("progressive") and _components_of_first_scan(data) == len(layers):
        return 0
    samples = sum(horizontal * vertical for _, horizontal, vertical, _ in layers)
    blocks = max(layer[1] for layer in layers) * max(layer[2] for layer in layers)
    return 2 * image.width * image.height * samples // blocks


def _components_of_first_scan(data: bytes) -> int:
    """Number of components of a JPEG's first scan; 0 if there is none."""
    position = 2
    while position + 4 < len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0x00, 0xFF):
            position += 1
        elif marker == 0xDA:
            return data[position + 4]
        elif marker == 0x01 or 0xD0 <= marker <= 0xD9:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0


def _tiff_block(image: ImageFile.ImageFile) -> int:
    """Bytes of a strip or tile, which libtiff decodes at once."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = sum(tags.get(BITSPERSAMPLE, (1,))) if SAMPLESPERPIXEL in tags else tags.get(BITSPERSAMPLE, (1,))[0]
    if TILEWIDTH in tags and TILELENGTH in tags:
        pixels = tags[TILEWIDTH] * tags[TILELENGTH]
    else:
        pixels = image.width * min(tags.get(ROWSPERSTRIP, image.height), image.height)
    return int(pixels * max(4, bits / 8))
