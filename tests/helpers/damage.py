"""Small damaged shards, with the manifest row that each of their images must get.

A key's row is DONE, or the stage and a pattern of the error; the empty key stands for the shard as a whole.
"""

import bz2
import gzip
import json
import lzma
import struct
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from helpers.image_files import encode, gradient
from helpers.image_files import png as chunks
from helpers.tars import END, file, forge, header, record
from helpers.tiny import png

DONE = "done"
Row = str | tuple[str, str]


@dataclass(frozen=True)
class Case:
    """One damaged shard."""

    kind: str
    name: str
    content: bytes
    rows: dict[str, Row]

    @property
    def shard(self) -> str:
        """Name of the file, without '.tar'."""
        return f"{self.kind} {self.name}"


def good(key: str) -> bytes:
    """A healthy sample."""
    return file(f"{key}.png", png(ord(key[0]))) + caption(key)


def caption(key: str) -> bytes:
    return file(f"{key}.txt", f"an image of {key}".encode())


def between(kind: str, name: str, members: bytes, rows: dict[str, Row], shard: str = "") -> Case:
    """Put members between two healthy samples; `shard` is the error of the whole shard, if there is one."""
    whole: dict[str, Row] = {"": ("shard", shard)} if shard else {}
    return Case(kind, name, good("a") + members + good("z") + END, {"a": DONE, **rows, "z": DONE, **whole})


def after(kind: str, name: str, content: bytes, shard: str, rows: Mapping[str, Row] | None = None) -> Case:
    """Damage that ends a shard behind a healthy sample."""
    return Case(kind, name, good("a") + content, {"a": DONE, **(rows or {}), "": ("shard", shard)})


# --- archives ---

X, Y, PNG = good("x"), good("y"), file("x.png", png(1))
IMAGE_END = X.index(b"x.txt")
IS_DONE: dict[str, Row] = {"x": DONE}
IRREGULAR: dict[str, Row] = {"x": ("shard", "'x.png' is no regular file; pack with 'tar --dereference")}
NO_HEADER = "neither header nor end marker"


def with_block(content: bytes, start: int, block: bytes) -> bytes:
    return content[:start] + block + content[start + len(block) :]


def cuts() -> list[Case]:
    """A shard of three samples, cut in the second."""
    lost = ("shard", "the shard is damaged here")
    places: dict[str, tuple[int, str, dict[str, Row]]] = {
        "before the first header": (0, NO_HEADER, {}),
        "in the first header": (100, NO_HEADER, {}),
        "behind the image's header": (512, "unexpected end of data", {"x": lost}),
        "in the image": (512 + 100, "unexpected end of data", {"x": lost}),
        "in the image's padding": (IMAGE_END - 1, "unexpected end of data|" + NO_HEADER, {"x": lost}),
        "between image and caption": (IMAGE_END, NO_HEADER, {"x": lost}),
        "in the caption's header": (IMAGE_END + 511, NO_HEADER, {"x": lost}),
        "behind the caption's header": (IMAGE_END + 512, "unexpected end of data", {"x": lost}),
        "in the caption": (IMAGE_END + 515, "unexpected end of data", {"x": lost}),
        "in the caption's padding": (len(X) - 1, "unexpected end of data|" + NO_HEADER, {"x": DONE}),
        "between samples": (len(X), NO_HEADER, {"x": DONE}),
    }
    cases = [after("archive", f"cut {where}", X[:end], what, rows) for where, (end, what, rows) in places.items()]
    meeting = good("x") + good("a")[: IMAGE_END + 515]
    rows: dict[str, Row] = {"x": DONE, "a": lost, "": ("shard", "unexpected end of data")}
    cases.append(Case("archive", "cut in the key that the next shard begins with", meeting, rows))
    cases.append(after("archive", "cut before its end marker", X + Y, NO_HEADER, {"x": DONE, "y": DONE}))
    cases.append(after("archive", "cut in its end marker", X + bytes(700), "end marker at byte .* is cut", {"x": DONE}))
    return cases


def headers() -> list[Case]:
    """Headers that were wiped or forged."""
    lost = ("shard", "the shard is damaged here")
    caption_header = X[IMAGE_END : IMAGE_END + 512]
    forged = {
        "zeroed first header": (0, bytes(512), "data follows the end marker", {}),
        "zeroed caption header": (IMAGE_END, bytes(512), "data follows the end marker", {"x": lost}),
        "two zeroed blocks": (0, bytes(1024), "data follows the end marker", {}),
        "noise for a header": (0, b"\xa5" * 512, NO_HEADER, {}),
        "text for a header": (IMAGE_END, b"<html>".ljust(512), NO_HEADER, {"x": lost}),
        "wrong checksum": (IMAGE_END, caption_header[:-1] + b"!", NO_HEADER, {"x": lost}),
        "no checksum": (IMAGE_END, caption_header[:148] + bytes(8) + caption_header[156:], NO_HEADER, {"x": lost}),
        "size that is no number": (
            IMAGE_END,
            header("x.txt", 0, size_field=b"zzzzzzzzzzz\0"),
            NO_HEADER,
            {"x": lost},
        ),
        "size too small": (0, header("x.png", 5), NO_HEADER, {"x": lost}),
        "size too large": (IMAGE_END, header("x.txt", 4000), NO_HEADER, {"x": lost}),
        "size beyond the end": (IMAGE_END, header("x.txt", 1 << 30), "unexpected end of data", {"x": lost}),
        "size of 2 to the 94": (
            IMAGE_END,
            header("x.txt", 0, size_field=b"\x80" + b"\x3f" * 11),
            "impossible size",
            {"x": lost},
        ),
        "negative size": (IMAGE_END, header("x.txt", 0, size_field=b"\xff" * 12), "impossible size", {"x": lost}),
        "size that goes back": (
            IMAGE_END,
            header("x.txt", 0, size_field=b"\xff" * 10 + b"\xf0\x00"),
            "impossible size",
            {"x": lost},
        ),
        "long name of 8 GiB": (
            0,
            header("././@LongLink", 0, b"L", b"\x80" + bytes(6) + b"\2" + bytes(4)),
            "name or attributes of 8589934592 bytes",
            {},
        ),
    }
    return [
        after("archive", name, with_block(X + Y + END, start, block), what, rows)
        for name, (start, block, what, rows) in forged.items()
    ]


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def whole_files() -> list[Case]:
    """Files that are no tars, and compressed tars."""
    whole = good("a") + X + good("z") + END
    rows: dict[str, Row] = {"a": DONE, "x": DONE, "z": DONE}
    noise = file("x.png", np.random.default_rng(0).bytes(200_000)) + caption("x")
    packed = zipped(good("a") + noise + good("z") + END)
    wrong_sum = packed[:-8] + bytes(4) + packed[-4:]
    squeeze = zlib.compressobj(wbits=31)
    torn = squeeze.compress(good("a") + noise[:30_000]) + squeeze.flush(zlib.Z_FULL_FLUSH) + b"\7" * 100
    not_read: dict[str, Row] = {"x": ("image", "not a whole")}
    return [
        Case("archive", "tar.gz named tar", zipped(whole), rows),
        Case("archive", "tar.bz2 named tar", bz2.compress(whole), rows),
        Case("archive", "tar.xz named tar", lzma.compress(whole), rows),
        Case("archive", "tar.gz in two pieces", zipped(whole[:3000]) + zipped(whole[3000:]), rows),
        Case(
            "archive",
            "tar.gz cut",
            packed[:150_000],
            {"a": DONE, "x": ("shard", "shard is damaged here"), "": ("shard", "ended before")},
        ),
        Case(
            "archive",
            "tar.gz with a wrong checksum",
            wrong_sum,
            {"a": DONE, **not_read, "z": ("shard", "CRC"), "": ("shard", "CRC check failed")},
        ),
        Case(
            "archive",
            "tar.gz with a wrong byte in its head",
            b"\x1f\x8b\x09" + packed[3:],
            {"": ("shard", "compression method")},
        ),
        Case(
            "archive",
            "tar.gz with wrong data",
            packed[:10] + b"\7" + packed[11:],
            {"": ("shard", "invalid block type")},
        ),
        Case(
            "archive",
            "tar.gz with wrong data in an image",
            torn,
            {"a": DONE, "x": ("shard", "shard is damaged here"), "": ("shard", "invalid block type")},
        ),
        Case("archive", "empty file", b"", {"": ("shard", NO_HEADER)}),
        Case("archive", "end marker alone", END, {"": ("shard", "holds no samples")}),
        Case("archive", "zeros", bytes(10240), {"": ("shard", "holds no samples")}),
        Case("archive", "html", b"<html>404 Not Found</html>", {"": ("shard", NO_HEADER)}),
        Case("archive", "image named tar", png(1), {"": ("shard", NO_HEADER)}),
        Case("archive", "zip named tar", b"PK\3\4" + bytes(1000), {"": ("shard", NO_HEADER)}),
        Case("archive", "noise", np.random.default_rng(1).bytes(5000), {"": ("shard", NO_HEADER)}),
        Case(
            "archive",
            "two tars in a row",
            good("a") + END + X + END,
            {"a": DONE, "": ("shard", "data follows the end marker")},
        ),
        Case("archive", "long end marker", good("a") + bytes(20480 + 7), {"a": DONE}),
        after("archive", "no samples but one name", file("README", b"") + END, "'README' belongs to no sample"),
    ]


# --- members ---


def written(tar_format: Literal[0, 1, 2], key: str, **fields: object) -> bytes:
    """A sample as Python's tarfile writes it."""
    parts = []
    for name, content in ((f"{key}.png", png(1)), (f"{key}.txt", f"an image of {key}".encode())):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for field, value in fields.items():
            setattr(info, field, value)
        parts.append(info.tobuf(tar_format) + content + bytes(-len(content) % 512))
    return b"".join(parts)


def both(*fields: tuple[int, bytes]) -> bytes:
    """A sample whose headers have other bytes at these places."""
    return forge(PNG, *fields) + forge(caption("x"), *fields)


def formats() -> list[Case]:
    """Old, new and odd ways to write a member: some are read, the others have an error."""
    long = "d/" + "k" * 120
    gnu, v7 = (257, b"ustar  \0"), (257, bytes(255))
    size = len(png(1))
    times = [(345, b"%011o\0" % (1_700_000_000 + n)) for n in range(2)]
    spread = (386, b"%011o\0%011o\0" % (0, size)), (483, b"%011o\0" % size)
    sparse = {"GNU.sparse.map": f"0,{size}", "GNU.sparse.size": str(size), "GNU.sparse.name": "x.png"}
    samples: dict[str, tuple[bytes, dict[str, Row]]] = {
        "v7": (both(v7, (156, b"\0")), IS_DONE),
        "ustar with a prefix": (both((345, b"some/folder")), {"some/folder/x": DONE}),
        "gnu": (both(gnu), IS_DONE),
        "gnu incremental": (forge(PNG, gnu, times[0]) + forge(caption("x"), gnu, times[1]), IS_DONE),
        "gnu folder listing": (forge(header("d/", 7, b"D"), gnu) + b"Yx.png\0".ljust(512, b"\0") + X, IS_DONE),
        "gnu volume label": (forge(header("Volume 1", 0, b"V"), gnu) + X, IS_DONE),
        "gnu long name": (written(tarfile.GNU_FORMAT, long), {long: DONE}),
        "pax long name": (written(tarfile.PAX_FORMAT, long), {long: DONE}),
        "pax size": (record(b"x", {"size": str(size)}) + forge(PNG, (124, b"00000000000\0")) + caption("x"), IS_DONE),
        "pax comment": (written(tarfile.PAX_FORMAT, "x", mtime=1.5, pax_headers={"comment": "é"}), IS_DONE),
        "pax global comment": (record(b"g", {"comment": "0123abc"}) + X, IS_DONE),
        "base 256 size": (forge(PNG, (124, b"\x80" + size.to_bytes(11, "big"))) + caption("x"), IS_DONE),
        "contiguous file": (both((156, b"7")), IS_DONE),
        "sparse by old gnu": (forge(PNG, gnu, (156, b"S"), *spread) + caption("x"), IRREGULAR),
        "sparse by pax": (record(b"x", sparse) + PNG + caption("x"), IRREGULAR),
        "hard link": (header("x.png", 0, b"1") + caption("x"), IRREGULAR),
        "symbolic link": (forge(header("x.png", 0, b"2"), (157, b"a.png")) + caption("x"), IRREGULAR),
        "character device": (header("x.png", 0, b"3") + caption("x"), IRREGULAR),
        "block device": (header("x.png", 0, b"4") + caption("x"), IRREGULAR),
        "fifo": (header("x.png", 0, b"6") + caption("x"), IRREGULAR),
        "second volume": (forge(PNG, (156, b"M")) + caption("x"), IRREGULAR),
        "unknown type": (forge(PNG, (156, b"Z")) + caption("x"), IRREGULAR),
        "caption that is a link": (PNG + header("x.txt", 0, b"2"), {"x": ("shard", "'x.txt' is no regular file")}),
        "v7 folder": (header("x.png/", 0, b"\0") + caption("x"), {"x": ("image", "0 image members among .txt, not")}),
        "caption of 2 MiB": (
            PNG + file("x.txt", bytes(1 << 21)),
            {"x": ("shard", "2097152 bytes, and at most 1048576")},
        ),
    }
    cases = [between("member", name, content, rows) for name, (content, rows) in samples.items()]
    large: dict[str, Row] = {"x": ("shard", "'x.png' has 2147483648 bytes, and at most 1073741824 are read")}
    return [
        *cases,
        after("member", "image of 2 GiB", header("x.png", 1 << 31), "unexpected end of data", large),
        after("member", "pax global size", record(b"g", {"size": "3"}) + X + END, "impossible size of 3 bytes"),
        after(
            "member",
            "pax record of another form",
            header("p", 30, b"x") + b"x" * 512 + X + END,
            "none follow|" + NO_HEADER,
        ),
        after("member", "pax record before nothing", X + record(b"x", {"path": "y.png"}) + END, NO_HEADER, IS_DONE),
        after(
            "member",
            "long name before nothing",
            X + file("n", b"y.png").replace(header("n", 5), header("n", 5, b"L")),
            NO_HEADER,
            IS_DONE,
        ),
    ]


# --- keys ---


def renamed(names: dict[bytes, bytes]) -> bytes:
    return b"".join(file(name, content) for name, content in names.items())


def keys() -> list[Case]:
    """Awkward keys, and members that belong to no sample."""
    plain = {
        "in folders": "d/e.f/x",
        "that goes up": "../../x",
        "that is absolute": "/etc/x",
        "in this folder": "./x",
        "with quotes": "x'\"`",
        "with spaces": " x y ",
        "in other letters": "ключ 図 🙂",
        "with a line break": "x\ny",
        "with control characters": "x\t\x1b[31m\x7f",
        "with backslashes": "d\\x",
        "with signs of a url": "x#y?z=%41&+",
        "like an option": "-rf",
        "like a pattern": "x*[y]{0,9}::z",
    }
    cases = [between("key", name, good(key), {key: DONE}) for name, key in plain.items()]
    long = {"of 300 characters": "k" * 300, "of 20000 characters": "k" * 20_000, "in 300 folders": "d/" * 300 + "x"}
    cases += [between("key", name, written(tarfile.GNU_FORMAT, key), {key: DONE}) for name, key in long.items()]
    image, text = png(1), b"an image of x"
    nul = b"".join(record(b"x", {"path": f"x\0y.{e}"}) + file("n", d) for e, d in (("png", image), ("txt", text)))
    odd = b"\xff\xe9"
    samples: dict[str, tuple[bytes, dict[str, Row]]] = {
        "that is no utf-8": (renamed({odd + b".png": image, odd + b".txt": text}), {r"\xff\xe9": DONE}),
        "with a zero byte": (nul, {"x\0y": DONE}),
        "with capital extensions": (renamed({b"x.PNG": image, b"x.Txt": text}), IS_DONE),
        "in both cases": (good("x") + good("X"), {"x": DONE, "X": DONE}),
        "with more members": (X + renamed({b"x.json": b"{}", b"x.mask.png": image, b"x.cls": b"1"}), IS_DONE),
        "with two dots": (
            renamed({b"x.v2.png": image, b"x.v2.txt": text}),
            {"x": ("image", "first dot of the file name")},
        ),
        "with two images": (
            X + renamed({b"x.jpg": image}),
            {"x": ("image", "2 image members among .png, .txt, .jpg")},
        ),
        "without an image": (caption("x"), {"x": ("image", "0 image members")}),
        "with one member twice": (X + caption("x"), {"x": ("shard", "two members are called 'x.txt'")}),
        "with one member in both cases": (
            X + renamed({b"x.TXT": text}),
            {"x": ("shard", "upper and lower case being equal")},
        ),
        "that ends in a dot": (renamed({b"x.": image}), {"x": ("image", "0 image members among ., not")}),
        "beside webdataset's own": (renamed({b"__url__": b"", b"__meta__/x.json": b"{}"}) + X, IS_DONE),
        "beside folders": (header("d", 0, b"5") + header("d.e/", 0, b"5") + X, IS_DONE),
        "of macOS": (
            renamed({b"._x.png": b"\0\5\x16\7", b"x.png": image, b"._x.txt": b"\0\5\x16\7", b"x.txt": text}),
            IS_DONE,
        ),
        "of macOS in a folder": (
            renamed(
                {
                    b"d/.DS_Store": b"\0\0\0\1Bud1",
                    b"d/._x.png": b"\0\5",
                    b"d/x.png": image,
                    b"d/._x.txt": b"\0\5",
                    b"d/x.txt": text,
                }
            ),
            {"d/x": DONE},
        ),
        "of macOS in its own folder": (
            X + renamed({b"__MACOSX/d/._x.png": b"\0\5", b"__MACOSX/._y.png": b""}),
            IS_DONE,
        ),
    }
    cases += [between("key", name, content, rows) for name, (content, rows) in samples.items()]
    with_errors: dict[str, tuple[bytes, dict[str, Row], str]] = {
        "that comes again": (X + good("y") + good("x"), {"x": DONE, "y": DONE}, "members of key 'x' come again"),
        "of a neighbour": (X + good("a"), IS_DONE, "members of key 'a' come again"),
        "with a member further on": (
            PNG + Y + caption("x"),
            {"x": ("caption", "no .txt member beside .png"), "y": DONE},
            "key 'x' come again",
        ),
        "without an extension": (
            file("x", image) + Y,
            {"y": DONE},
            "'x' belongs to no sample: its name is not KEY.EXT",
        ),
        "that is empty": (file("", image) + Y, {"y": DONE}, "'' belongs to no sample"),
        "that is an extension": (file(".png", image) + Y, {"y": DONE}, "'.png' belongs to no sample"),
        "that is hidden in a folder": (file("d/.x.png", image) + Y, {"y": DONE}, "'d/.x.png' belongs to no sample"),
        "that ends in a slash": (file("x.png/", image) + Y, {"y": DONE}, "'x.png/' belongs to no sample"),
    }
    return cases + [between("key", name, content, rows, shard) for name, (content, rows, shard) in with_errors.items()]


# --- images ---


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


# --- captions ---


def captions() -> list[Case]:
    """Texts beside an image."""
    texts: dict[str, tuple[bytes, Row]] = {
        "empty": (b"", ("caption", "the caption is empty")),
        "blank": (b" \r\n\t\xc2\xa0", ("caption", "the caption is empty")),
        "of a mark alone": (b"\xef\xbb\xbf", ("caption", "the caption is empty")),
        "in latin 1": (b"caf\xe9", ("caption", "'utf-8' codec can't decode")),
        "in utf-16": ("a cat".encode("utf-16"), ("caption", "'utf-8' codec can't decode")),
        "with half a character": ("é".encode()[:1], ("caption", "'utf-8' codec can't decode")),
        "with a surrogate": (b"\xed\xa0\x80", ("caption", "'utf-8' codec can't decode")),
        "too long": (b"a red circle " * 100, DONE),
        "of 100000 characters": (b"word " * 20_000, DONE),
        "with a mark": (b"\xef\xbb\xbfa red circle", DONE),
        "of many lines": (b"a red circle\r\n\r\nand a blue one\n", DONE),
        "in other letters": ("красный круг 赤い円 🔴 دائرة".encode(), DONE),
        "with a zero byte": (b"a red\0circle", DONE),
        "with markup": (b"<|endoftext|> <b>&amp;</b> {json: [1]}", DONE),
    }
    cases = [between("caption", name, PNG + file("x.txt", data), {"x": row}) for name, (data, row) in texts.items()]
    missing: dict[str, Row] = {"x": ("caption", "there is no .txt member beside .png")}
    return [
        *cases,
        between("caption", "missing", PNG, missing),
        between(
            "caption",
            "in a json",
            PNG + file("x.json", b'{"caption": "a cat"}'),
            {"x": ("caption", "beside .png, .json")},
        ),
        between(
            "caption",
            "under another extension",
            PNG + file("x.caption", b"a cat"),
            {"x": ("caption", "beside .png, .caption")},
        ),
    ]


def with_json(key: str, text: bytes) -> bytes:
    return file(f"{key}.png", png(ord(key[0]))) + file(f"{key}.json", text)


def json_captions() -> list[Case]:
    """JSON beside an image, the caption being expected in the field 'caption'."""
    no_field = ("caption", "has no field 'caption' that is a string")
    nested = b'{"caption": "a cat", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    texts: dict[str, tuple[bytes, Row]] = {
        "json": (json.dumps({"width": 8, "caption": "кот", "tags": ["a"]}).encode(), DONE),
        "json with a mark": (b'\xef\xbb\xbf{"caption": "a cat"}', DONE),
        "json in escapes": (b'{"caption": "\\ud83d\\ude42"}', DONE),
        "json with the field twice": (b'{"caption": 3, "caption": "a cat"}', DONE),
        "json under another field": (b'{"text": "a cat"}', no_field),
        "json in another case": (b'{"Caption": "a cat"}', no_field),
        "json in a nested field": (b'{"meta": {"caption": "a cat"}}', no_field),
        "json of a list of captions": (b'{"caption": ["a cat", "a dog"]}', no_field),
        "json of null": (b'{"caption": null}', no_field),
        "json that is a list": (b'["a cat"]', no_field),
        "json that is a string": (b'"a cat"', no_field),
        "json of an empty caption": (b'{"caption": "  "}', ("caption", "the caption is empty")),
        "json that is empty": (b"", ("caption", "Expecting value")),
        "json cut": (b'{"caption": "a ca', ("caption", "Unterminated string")),
        "json of half a surrogate pair": (b'{"caption": "\\ud83d"}', ("caption", "surrogates not allowed")),
        "json in latin 1": (b'{"caption": "caf\xe9"}', ("caption", "'utf-8' codec can't decode")),
        "json nested deeply": (nested, ("caption", "recursion")),
        "json with a huge number": (b'{"caption": "a cat", "n": ' + b"1" * 5000 + b"}", ("caption", "digits")),
        "json lines": (b'{"caption": "a cat"}\n{"caption": "a dog"}', ("caption", "Extra data")),
    }
    return [
        Case(
            "caption",
            name,
            with_json("a", b'{"caption": "a"}') + with_json("x", data) + with_json("z", b'{"caption": "z"}') + END,
            {"a": DONE, "x": row, "z": DONE},
        )
        for name, (data, row) in texts.items()
    ]


CASES = [*cuts(), *headers(), *whole_files(), *formats(), *keys(), *images(), *captions()]
JSON_CASES = json_captions()
