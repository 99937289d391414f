"""Damage to an archive as a whole: cuts, headers, files of another kind."""

import bz2
import gzip
import lzma
import zlib

import numpy as np

from helpers.damage.case import (
    DONE,
    IMAGE_END,
    NO_HEADER,
    Case,
    Row,
    X,
    Y,
    after,
    caption,
    good,
    with_block,
)
from helpers.tars import END, file, header
from helpers.tiny import png


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
