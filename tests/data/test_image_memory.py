"""Decoding one image takes little memory, and gives the same pixels whatever path it takes."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.icc import SPACES, rgb_profile
from helpers.image_files import encode, gradient
from helpers.jobs import arguments, rows
from helpers.memory import decode_apart
from helpers.tiny import write_shard
from PIL import Image

from nti_batch.cli import main
from nti_batch.data import color, images
from nti_batch.data.image_memory import MIB, decoding_bytes
from nti_batch.data.images import MAX_MEMORY, decode_image

SIDEWAYS = Image.Exif()
SIDEWAYS[0x112] = 6


def png_of_zeros(side: int, bits: int, colour_type: int, bytes_per_pixel: int) -> bytes:
    """Write a large PNG in little memory."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + side * bytes_per_pixel)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    framed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_an_image_that_needs_more_memory_is_refused_before_it_is_decoded() -> None:
    added, error = decode_apart(png_of_zeros(13_300, 8, 6, 4), 64)
    assert added < 32
    assert error == (
        "image of 13300 x 13300 pixels (PNG, RGBA) takes about 739 MiB to decode, allowed: 512; scale it down, or "
        "raise --data.max_image_memory"
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: png_of_zeros(13_300, 16, 0, 2),
        lambda: encode(Image.new("RGB", (9000, 9000), (200, 60, 40)), "JPEG", progressive=True, exif=SIDEWAYS),
        lambda: encode(Image.new("RGB", (5100, 5100), (200, 60, 40)), "WEBP", method=0),
    ],
    ids=["16-bit PNG", "progressive JPEG, sideways", "WebP"],
)
def test_decoding_the_largest_images_adds_no_more_than_the_limit(make: Callable[[], bytes]) -> None:
    added, error = decode_apart(make(), 512)
    assert error == ""
    assert added < MAX_MEMORY / MIB


def kinds_of_images() -> dict[str, bytes]:
    """One smooth image in every mode and format that is converted in its own way."""
    rgb = gradient(600, 800)
    grey, alpha = rgb.convert("L"), Image.new("L", rgb.size, 255)
    profile = rgb_profile(*SPACES["Adobe RGB"])
    clear = Image.merge("RGBA", (*rgb.split(), Image.linear_gradient("L").resize(rgb.size)))
    deep = np.asarray(grey).astype(np.uint16) * 257
    return {
        "PNG": encode(rgb),
        "PNG with a profile": encode(rgb, icc_profile=profile),
        "PNG with alpha": encode(clear),
        "grey PNG with alpha": encode(Image.merge("LA", (grey, alpha))),
        "palette": encode(rgb.quantize(255)),
        "palette with a transparent entry": encode(rgb.quantize(255), transparency=9),
        "16 bits": encode(Image.fromarray(deep)),
        "16 bits, one transparent": encode(Image.fromarray(deep), transparency=128 * 257),
        "float TIFF": encode(Image.fromarray(np.asarray(grey).astype(np.float32) / 255), "TIFF"),
        "sideways TIFF": encode(rgb, "TIFF", exif=SIDEWAYS),
        "JPEG": encode(rgb, "JPEG", quality=95),
        "sideways JPEG with a profile": encode(rgb, "JPEG", quality=95, exif=SIDEWAYS, icc_profile=profile),
        "progressive JPEG": encode(rgb, "JPEG", quality=95, progressive=True),
        "CMYK": encode(rgb.convert("CMYK"), "JPEG", quality=95),
        "GIF": encode(rgb, "GIF"),
        "WebP": encode(rgb, "WEBP", quality=95),
        "JPEG 2000": encode(rgb, "JPEG2000"),
        "AVIF": encode(rgb, "AVIF", quality=95),
    }


KINDS = kinds_of_images()


@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS)
def test_converting_by_tiles_changes_no_pixel(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = decode_image(data, 64, 48)
    monkeypatch.setattr(images, "TILE_SIDE", 100)
    monkeypatch.setattr(color, "TILE_SIDE", 100)
    assert torch.equal(decode_image(data, 64, 48), at_once)


@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_an_image_that_is_averaged_while_it_is_converted_is_nearly_the_same(
    data: bytes, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decode_image(data, *shape)
    monkeypatch.setattr(images, "MAX_MEMORY", images.WORKING_MEMORY + 1)
    averaged = decode_image(data, *shape, max_memory=None)
    difference = (averaged.int() - whole.int()).abs().float()
    assert difference.mean() < 1.5
    assert difference.quantile(0.99) < 8


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "CMYK", "JPEG 2000"])
def test_a_format_with_smaller_scales_is_decoded_in_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = KINDS[kind]
    needed = decoding_bytes(Image.open(io.BytesIO(data)), data)
    whole = decode_image(data, 48, 64)
    monkeypatch.setattr(images, "WORKING_MEMORY", 0)
    monkeypatch.setattr(images, "MAX_MEMORY", needed - 1)
    assert (decode_image(data, 48, 64, needed - 1).int() - whole.int()).abs().float().mean() < 1.5
    with pytest.raises(ValueError, match=r"takes about \d+ MiB to decode, allowed: "):
        decode_image(data, 320, 320, needed - 1)


@pytest.mark.parametrize(
    ("options", "samples"),
    [({}, 0), ({"progressive": True}, 1.5), ({"progressive": True, "subsampling": 0}, 3)],
    ids=["baseline", "progressive, 4:2:0", "progressive, 4:4:4"],
)
def test_a_jpeg_in_several_scans_keeps_two_bytes_a_coefficient(options: dict[str, object], samples: float) -> None:
    data = encode(gradient(64, 64), "JPEG", **options)
    image = Image.open(io.BytesIO(data))
    assert decoding_bytes(image, data) == 64 * 64 * (4 + 2 * samples)
    # the components of a baseline JPEG may come one after the other as well
    start = data.index(b"\xff\xda") + 4
    apart = data[:start] + b"\1" + data[start + 1 :]
    assert decoding_bytes(image, apart) > 64 * 64 * 4


def test_a_tile_larger_than_its_image_counts() -> None:
    image = Image.open(io.BytesIO(encode(gradient(), "TIFF", compression="tiff_lzw")))
    image.tag_v2[322] = image.tag_v2[323] = 30_000  # type: ignore[attr-defined]
    assert decoding_bytes(image, b"") > 30_000 * 30_000


@pytest.mark.parametrize("size", [(3_000_000, 1), (1, 3_000_000), (60_000, 50)])
def test_thin_images_are_cropped_before_they_are_converted(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_MEMORY", images.WORKING_MEMORY + 1)
    assert decode_image(encode(Image.new("P", size, 3)), 32, 64, max_memory=None).shape == (3, 32, 64)


def test_a_profile_of_any_size_is_ignored_beyond_that_of_a_printer() -> None:
    profile = rgb_profile(*SPACES["Adobe RGB"])
    image = Image.new("RGB", (8, 8), (30, 200, 90))
    small = decode_image(encode(image, "TIFF", icc_profile=profile), 8, 8)
    large = decode_image(encode(image, "TIFF", icc_profile=profile + bytes(color.MAX_PROFILE_BYTES)), 8, 8)
    assert large[:, 0, 0].tolist() == [30, 200, 90] != small[:, 0, 0].tolist()


def test_text_in_a_png_is_unpacked_up_to_a_bound() -> None:
    text = b"k\0\0" + zlib.compress(bytes(1 << 27), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    data = encode(gradient())
    added, _ = decode_apart(data[:33] + chunk + data[33:], 48)
    assert added < 32


def test_the_flag_allows_or_refuses_an_image_and_changes_no_pixel(tiny_model: Path, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", {"large.png": png_of_zeros(4500, 8, 6, 4)[:-50], "large.txt": b"a caption"})
    job = arguments(tiny_model, shard, tmp_path / "out", "--data.max_image_memory=128")
    assert main(job) == 3
    assert rows(tmp_path / "out")["large"].error == (
        "image of 4500 x 4500 pixels (PNG, RGBA) takes about 141 MiB to decode, allowed: 128; scale it down, or raise "
        "--data.max_image_memory"
    )
    assert main([*job[:-1], "--data.retry_failed=true"]) == 3
    assert "truncated" in rows(tmp_path / "out")["large"].error
    assert main([*job[:-1], "--data.max_image_memory=64"]) == 2
