"""`decode_image`: a file of any kind gives the image that a person would see, or a reason."""

import io
import struct
import warnings

import numpy as np
import pytest
import torch
from helpers.image_files import encode, gradient, png
from PIL import Image, ImageFile
from torch import Tensor

from nti_batch.data.images import decode_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def pixels_of(image: Image.Image) -> Tensor:
    """Convert an RGB image to [3, height, width]."""
    return torch.tensor(np.array(image)).permute(2, 0, 1)


def assert_close(a: Tensor, b: Tensor, within: int) -> None:
    """Check that every pixel agrees within so many grey levels."""
    assert a.shape == b.shape
    assert (a.int() - b.int()).abs().max() <= within


def colour(data: bytes) -> tuple[int, ...]:
    """Decode a file, and return its mean colour."""
    return tuple(decode_image(data, 8, 8).float().mean((1, 2)).round().int().tolist())


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


def test_transparent_pixels_show_white_and_half_transparent_ones_half() -> None:
    for alpha, expected in ((0, WHITE), (255, RED), (128, (255, 127, 127))):
        assert colour(encode(Image.new("RGBA", (8, 8), (*RED, alpha)))) == expected
    for alpha, level in ((0, 255), (255, 40), (128, 147)):
        assert colour(encode(Image.new("LA", (8, 8), (40, alpha)))) == (level,) * 3


def test_transparent_palette_entries_show_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*BLUE, *RED])
    assert colour(encode(image)) == RED
    assert colour(encode(image, transparency=0)) == RED
    assert colour(encode(image, transparency=1)) == WHITE
    assert colour(encode(image, transparency=bytes([255, 128]))) == (255, 127, 127)
    assert colour(encode(image, "GIF", transparency=1)) == WHITE


def tiff_with_palette_and_alpha(index: int, alpha: int, palette: list[tuple[int, ...]]) -> bytes:
    """Write a TIFF of one pixel, mode PA; Pillow reads these and does not write them."""
    table = [palette[i][c] * 257 if i < len(palette) else 0 for c in range(3) for i in range(256)]
    extra = 8 + 2 + 12 * 11 + 4
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 2, 8 | 8 << 16), (259, 3, 1, 1), (262, 3, 1, 3)]
    tags += [(273, 4, 1, extra + 1536), (277, 3, 1, 2), (278, 3, 1, 1), (279, 4, 1, 2), (320, 3, 768, extra)]
    tags += [(338, 3, 1, 2)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + bytes(4)
    return b"II*\0\x08\0\0\0" + directory + struct.pack("<768H", *table) + bytes([index, alpha])


def test_palette_with_alpha_plane_shows_white() -> None:
    with Image.open(io.BytesIO(tiff_with_palette_and_alpha(1, 0, [BLUE, RED]))) as image:
        assert image.mode == "PA"
    for alpha, expected in ((0, WHITE), (255, RED), (128, (255, 127, 127))):
        assert colour(tiff_with_palette_and_alpha(1, alpha, [BLUE, RED])) == expected


def test_transparent_colour_of_grey_and_rgb_shows_white() -> None:
    assert colour(encode(Image.new("L", (8, 8), 40), transparency=40)) == WHITE
    assert colour(encode(Image.new("RGB", (8, 8), RED), transparency=RED)) == WHITE
    rows = (b"\0" + struct.pack(">H", 1000) * 8) * 8
    assert colour(png(8, 8, 16, 0, rows, (b"tRNS", struct.pack(">H", 1000)))) == WHITE
    assert colour(png(8, 8, 16, 0, rows, (b"tRNS", struct.pack(">H", 1001)))) == (4, 4, 4)


def test_grey_and_black_and_white_become_rgb() -> None:
    assert colour(encode(Image.new("L", (8, 8), 77))) == (77, 77, 77)
    assert colour(encode(Image.new("1", (8, 8), 1))) == WHITE


def test_cmyk_red_is_red() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for file_format in ("JPEG", "TIFF"):
        red, green, blue = colour(encode(image, file_format))
        assert red > 240 and green < 15 and blue < 15


RAMP = np.arange(256)[None].repeat(4, 0)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_ramp_equals_the_8_bit_ramp(file_format: str) -> None:
    image = Image.fromarray((RAMP * 257).astype(np.uint16))
    decoded = decode_image(encode(image, file_format), 4, 256)
    assert_close(decoded, torch.tensor(RAMP).expand(3, 4, 256), 1)


def test_big_endian_16_bit_ramp_equals_the_8_bit_ramp() -> None:
    ramp = Image.frombytes("I;16B", (256, 4), (RAMP * 257).astype(">u2").tobytes())
    assert_close(decode_image(encode(ramp, "TIFF"), 4, 256)[0], torch.tensor(RAMP), 1)


def test_dark_16_bit_image_stays_dark() -> None:
    for file_format in ("PNG", "PPM"):
        assert colour(encode(Image.fromarray(np.full((8, 8), 200, np.uint16)), file_format)) == (1, 1, 1)


@pytest.mark.parametrize(("scale", "kind"), [(1, "i4"), (257, "i4"), (2**23, "i4"), (1 / 255, "f4"), (1, "f4")])
def test_32_bit_ramp_equals_the_8_bit_ramp(scale: float, kind: str) -> None:
    ramp = (RAMP * scale).astype(kind)
    decoded = decode_image(encode(Image.fromarray(ramp), "TIFF"), 4, 256)
    assert_close(decoded, torch.tensor(RAMP).expand(3, 4, 256), 1)


def test_32_bit_integers_up_to_one_are_not_fractions_of_white() -> None:
    assert colour(encode(Image.fromarray(np.ones((8, 8), np.int32)), "TIFF")) == (1, 1, 1)


def test_values_that_are_no_numbers_are_black() -> None:
    values = np.array([[np.nan, -np.inf, -3.0, 1.0]], np.float32)
    decoded = decode_image(encode(Image.fromarray(values), "TIFF"), 1, 4)
    assert decoded[0].tolist() == [[0, 0, 0, 255]]


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
