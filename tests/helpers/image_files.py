"""Image files of every kind."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    """Encode an image as the content of a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def gradient(height: int = 48, width: int = 64) -> Image.Image:
    """Draw an image without symmetry that JPEG keeps well."""
    y, x = np.mgrid[:height, :width]
    channels = [x * 255 // width, y * 255 // height, 128 + 100 * np.sin(x / 9)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG by hand."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    framed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
