"""`decode_image`: a file of any kind gives the image that a person would see, or a reason."""

import struct
import warnings

import numpy as np
import pytest
import torch
from helpers.image_files import encode, gradient, png
from helpers.pixels import BLUE, RED, assert_close, colour, pixels_of
from PIL import Image, ImageFile

from nti_batch.data.images import decode_image


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_of_the_requested_size_come_back_exactly(file_format: str) -> None:
    decoded = decode_image(encode(gradient(), file_format), 48, 64)
    assert decoded.dtype == torch.uint8 and decoded.is_contiguous()
    assert torch.equal(decoded, pixels_of(gradient()))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "JPEG2000", "AVIF"])
def test_lossy_formats_come_back_nearly(file_format: str) -> None:
    decoded = decode_image(encode(gradient(), file_format, quality=95), 48, 64)
    assert (decoded.int() - pixels_of(gradient()).int()).abs().float().mean() < 4


UNDO = {  # how the camera's file must be turned so that viewers, following the tag, see it upright
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_TOP_BOTTOM],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT],
    8: [Image.Transpose.ROTATE_270],
}


def with_exif(jpeg: bytes, orientation: bytes, gps_entry: bytes = b"") -> bytes:
    """Put an EXIF segment with the orientation's directory entry, and one of GPS, into a JPEG."""
    entries = struct.pack("<H", 2) + orientation + struct.pack("<HHII", 0x8825, 4, 1, 38)
    payload = b"Exif\0\0II*\0\x08\0\0\0" + entries + bytes(4) + struct.pack("<H", 1) + gps_entry + bytes(68)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


SIDEWAYS = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
GPS = {
    "altitude reference as a byte": struct.pack("<HHI4B", 5, 1, 1, 0, 0, 0, 0),
    "altitude reference as text": struct.pack("<HHI4s", 5, 2, 2, b"0\0\0\0"),
    "altitude reference as a long": struct.pack("<HHII", 5, 4, 1, 70_000),
    "latitude as text": struct.pack("<HHI4s", 2, 2, 4, b"48N\0"),
    "latitude's N as a rational": struct.pack("<HHII", 1, 5, 1, 60),
    "unknown type": struct.pack("<HHII", 5, 99, 1, 60),
    "offset beyond the end": struct.pack("<HHII", 2, 5, 3, 0x7FFFFFFF),
}


@pytest.mark.parametrize("entry", GPS.values(), ids=GPS)
def test_a_mistyped_exif_tag_does_not_keep_an_image_from_being_turned(entry: bytes) -> None:
    sideways = gradient().transpose(Image.Transpose.ROTATE_90)
    decoded = decode_image(with_exif(encode(sideways, "JPEG", quality=95), SIDEWAYS, entry), 48, 64)
    assert (decoded.int() - pixels_of(gradient()).int()).abs().float().mean() < 4


@pytest.mark.parametrize(
    "orientation",
    [
        struct.pack("<HHIHH", 0x112, 3, 1, 9, 0),
        struct.pack("<HHI4s", 0x112, 2, 2, b"6\0\0\0"),
        struct.pack("<HHII", 0x112, 5, 1, 0x7FFFFFFF),
        struct.pack("<HHII", 0x112, 3, 0xFFFFFFFF, 8),
    ],
    ids=["unknown value", "text", "offset beyond the end", "endless list"],
)
def test_broken_exif_means_no_turn(orientation: bytes) -> None:
    data = with_exif(encode(gradient(), "JPEG", quality=95), orientation)
    assert (decode_image(data, 48, 64).int() - pixels_of(gradient()).int()).abs().float().mean() < 4


@pytest.mark.parametrize("orientation", UNDO)
def test_exif_orientation_is_undone(orientation: int) -> None:
    stored = gradient()
    for turn in UNDO[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(stored, "JPEG", exif=exif, quality=98, subsampling=0), 48, 64)
    assert_close(decoded, pixels_of(gradient()), 12)


def test_sideways_grey_16_bit_png_is_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(48, 0)
    stored = Image.fromarray(np.rot90(ramp).copy())
    assert_close(decode_image(encode(stored, exif=exif), 48, 64)[0], torch.tensor(ramp // 257), 1)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_first_frame_of_an_animation_is_taken(file_format: str) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    data = encode(first, file_format, save_all=True, append_images=[second])
    red, green, blue = colour(data)
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("upright", [False, True])
def test_centre_is_cropped(upright: bool) -> None:
    size, box = ((60, 120), (0, 30, 60, 90)) if upright else ((120, 60), (30, 0, 90, 60))
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, box)
    decoded = decode_image(encode(image), 20, 20)
    # the filter reaches a little over the edge of the crop; a crop moved by one pixel would mix in a third
    assert_close(decoded, torch.tensor(RED)[:, None, None].expand(3, 20, 20), 20)


def test_height_and_width_are_not_mixed_up() -> None:
    assert decode_image(encode(gradient()), 24, 40).shape == (3, 24, 40)


def test_resizing_averages_rather_than_skips() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    assert_close(decode_image(encode(Image.fromarray(board.astype(np.uint8))), 8, 8), torch.full((3, 8, 8), 127), 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (3, 2)])
def test_small_and_thin_images_are_enlarged(size: tuple[int, int]) -> None:
    assert colour(encode(Image.new("RGB", size, RED))) == RED


def test_pillow_settings_change_nothing_and_are_left_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode(gradient(480, 640), "JPEG")
    expected = decode_image(whole, 48, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert torch.equal(decode_image(whole, 48, 64), expected)
    with pytest.raises(ValueError, match="truncated"):
        decode_image(whole[: len(whole) // 2], 48, 64)
    assert Image.MAX_IMAGE_PIXELS == 100 and ImageFile.LOAD_TRUNCATED_IMAGES is True
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match="too many pixels"):
        decode_image(png(30_000, 30_000, 8, 2, b""), 8, 8)


def test_too_many_pixels_are_refused_from_the_header() -> None:
    with pytest.raises(ValueError, match=r"too many pixels, scale it down first: .*900000000.*178956970"):
        decode_image(png(30_000, 30_000, 8, 2, b""), 8, 8)


def test_pillow_warns_of_many_pixels_but_we_do_not() -> None:
    # 100 million pixels lie between Pillow's warning and its refusal; the rows are missing, so nothing is decoded
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ValueError, match="truncated"):
        warnings.simplefilter("always")
        decode_image(png(10_000, 10_000, 8, 0, b""), 8, 8)
    assert not caught


def test_empty_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"empty \(0 bytes\)"):
        decode_image(b"", 8, 8)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf\r\n "])
def test_html_is_named(start: bytes) -> None:
    with pytest.raises(ValueError, match=r"looks like an HTML or XML page, starts with .*<!DOCTYPE"):
        decode_image(start + b"<!DOCTYPE html><title>404</title>", 8, 8)


def test_other_files_are_refused_with_their_first_bytes() -> None:
    with pytest.raises(ValueError, match=r"JPEG.*: starts with b'%PDF-1\.7'"):
        decode_image(b"%PDF-1.7", 8, 8)


def test_half_a_jpeg_is_refused() -> None:
    data = encode(gradient(480, 640), "JPEG")
    with pytest.raises(ValueError, match=f"image of {len(data) // 2} bytes is damaged, truncated.*truncated"):
        decode_image(data[: len(data) // 2], 8, 8)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "AVIF"])
def test_half_a_file_is_refused(file_format: str) -> None:
    data = encode(gradient(), file_format)
    with pytest.raises(ValueError, match=r"truncated|not a whole"):
        decode_image(data[: len(data) // 2], 8, 8)


def test_errors_of_every_type_that_damage_raises_become_a_value_error() -> None:
    for data, error in (
        (encode(gradient(), "PPM").replace(b"48", b"4\xd5"), "ValueError: invalid literal"),
        (png(8, 8, 8, 0, b"").replace(b"IEND", b"I\xd5ND"), "SyntaxError: broken PNG"),
        (encode(gradient(), "BMP")[:100], "OSError: image file is truncated"),
    ):
        with pytest.raises(ValueError, match=f"image of {len(data)} bytes is damaged.*{error}"):
            decode_image(data, 8, 8)


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "JPEG", "TIFF", "WEBP"])
def test_damaged_files_give_pixels_or_a_value_error(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = np.frombuffer(encode(gradient(), file_format, exif=exif), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = whole.copy()
        data[rng.integers(0, len(data) // 4, 3)] = rng.integers(0, 256, 3)
        try:
            assert decode_image(data.tobytes(), 8, 8).shape == (3, 8, 8)
        except ValueError as error:
            assert str(error).startswith("image ")
