"""Image files of every kind."""

import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from helpers.damage.case import DONE, Case, Row, between, caption, with_block
from helpers.image_files import encode, gradient
from helpers.image_files import png as chunks
from helpers.tars import file


def image_case(name: str, data: bytes, row: Row) -> Case:
    return between("image", name, file("x.png", data) + caption("x"), {"x": row})


def large_tiff() -> bytes:
    """Return the beginning of a TIFF of 30,000 x 30,000 pixels in one strip."""
    tags = [(256, 4, 1, 30_000), (257, 4, 1, 30_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 30_000), (279, 4, 1, 900_000_000)]
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + bytes(4)
    )


def with_size(data: bytes, place: int, code: str) -> bytes:
    """A image that says that it is 30,000 pixels wide and high."""
    size = struct.pack(code, 30_000, 30_000)
    return data[:place] + size + data[place + len(size) :]


def bombs() -> dict[str, bytes]:
    """Small files that unpack to much."""
    image = gradient()
    jpeg = encode(image, "JPEG")
    zeros = zlib.compress(bytes(64 << 20), 9)
    return {
        "png": chunks(30_000, 30_000, 8, 2, b""),
        "png of zeros": chunks(30_000, 30_000, 1, 0, bytes(30_000 * 3751)),
        "gif": with_size(encode(image, "GIF"), 6, "<HH"),
        "tiff": large_tiff(),
        "bmp": with_size(encode(image, "BMP"), 18, "<ii"),
        "jpeg": with_size(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH"),
        "ppm": b"P6 30000 30000 255\n",
        "png text": chunks(1, 1, 8, 2, bytes(4), (b"zTXt", b"a\0\0" + zeros)),
        "png international text": chunks(1, 1, 8, 2, bytes(4), (b"iTXt", b"a\0\1\0\0\0" + zeros)),
        "png colour profile": chunks(1, 1, 8, 2, bytes(4), (b"iCCP", b"a\0\0" + zeros)),
    }


def images() -> list[Case]:
    """Image files of every kind."""
    image, grey = gradient(), gradient().convert("L")
    sideways, broken = Image.Exif(), b"Exif\0\0not a tiff"
    sideways[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(90)]}
    read = {
        "jpeg": encode(image, "JPEG"),
        "jpeg cmyk": encode(image.convert("CMYK"), "JPEG"),
        "jpeg grey": encode(grey, "JPEG"),
        "jpeg progressive": encode(image, "JPEG", progressive=True),
        "jpeg turned by exif": encode(image, "JPEG", exif=sideways),
        "jpeg with exif that is none": encode(image, "JPEG", exif=broken),
        "jpeg with bytes behind its end": encode(image, "JPEG") + bytes(100),
        "png 16 bit": encode(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)),
        "png palette": encode(image.quantize(16)),
        "png palette with transparency": encode(image.quantize(16), transparency=3),
        "png alpha": encode(image.convert("RGBA")),
        "png grey": encode(grey),
        "png grey alpha": encode(image.convert("LA")),
        "png black and white": encode(image.convert("1")),
        "png animation": encode(image, **frames),
        "gif animation": encode(image, "GIF", **frames),
        "webp": encode(image, "WEBP"),
        "webp animation": encode(image, "WEBP", **frames),
        "bmp": encode(image, "BMP"),
        "tiff": encode(image, "TIFF"),
        "tiff lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "tiff of no numbers": encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
        "tiff lab": encode(image.convert("LAB"), "TIFF"),
        "jpeg 2000": encode(image, "JPEG2000"),
        "avif": encode(image, "AVIF"),
        "1 x 1": encode(image.resize((1, 1))),
        "1 x 5000": encode(image.resize((1, 5000))),
    }
    jpeg = encode(image, "JPEG")
    unknown = "not a whole JPEG, PNG"
    refused = {
        "empty": (b"", r"empty \(0 bytes\)"),
        "html": (b"<!DOCTYPE html><title>404</title>", "looks like an HTML or XML page"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "looks like an HTML or XML page"),
        "text": (b"https://example.org/a.jpg", unknown),
        "pdf": (b"%PDF-1.7\n", unknown + ".*%PDF-1.7"),
        "eps": (encode(image, "EPS"), unknown + ".*%!PS-Adobe"),
        "ico": (encode(image, "ICO"), unknown),
        "zeros": (bytes(2000), unknown),
        "jpeg cut": (jpeg[: len(jpeg) // 2], "truncated"),
        "jpeg head": (jpeg[:3], unknown),
        "jpeg with wrong tables": (jpeg.replace(b"\xff\xdb", b"\xff\xe4"), "damaged, truncated or of an unknown kind"),
        "png cut": (encode(image)[:-200], "truncated"),
        "png with a wrong byte": (
            with_block(encode(image), 60, b"\0\0\0\0"),
            "damaged, truncated or of an unknown kind",
        ),
        "png of no width": (chunks(0, 8, 8, 2, b""), "damaged|" + unknown),
        "gif cut": (encode(image, "GIF")[:300], "truncated|" + unknown),
        "webp cut": (encode(image, "WEBP")[:100], "damaged, truncated or of an unknown kind"),
        "tiff cut": (encode(image, "TIFF")[:1000], "truncated|" + unknown),
    }
    texts = "Decompressed data too large"
    return [
        *(image_case(name, data, DONE) for name, data in read.items()),
        *(image_case(name, data, ("image", reason)) for name, (data, reason) in refused.items()),
        *(
            image_case(
                f"bomb {name}", data, ("image", "too many pixels" if " " not in name or "zeros" in name else texts)
            )
            for name, data in bombs().items()
        ),
    ]
