"""`decode_image` shows colours, greys and transparency as a viewer does."""

import io
import struct

import numpy as np
import pytest
import torch
from helpers.icc import SPACES, cmyk_profile, grey_profile, rgb_profile, to_srgb
from helpers.image_files import encode, png
from helpers.pixels import BLUE, RED, WHITE, assert_close, colour, halves
from PIL import Image

from nti_batch.data.images import decode_image


def test_transparent_pixels_show_white_and_half_transparent_ones_half() -> None:
    for alpha, expected in ((255, RED), (128, (255, 127, 127))):
        assert colour(encode(Image.new("RGBA", (8, 8), (*RED, alpha)))) == expected
    for alpha, level in ((255, 40), (128, 147)):
        assert colour(encode(Image.new("LA", (8, 8), (40, alpha)))) == (level,) * 3
    half = Image.new("RGBA", (8, 8), (*RED, 0))
    half.paste((*RED, 255), (4, 0, 8, 8))
    assert halves(encode(half)) == (WHITE, RED)


def test_an_image_that_is_transparent_everywhere_is_refused() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([*BLUE, *RED])
    rows = (b"\0" + struct.pack(">H", 1000) * 8) * 8
    files = [encode(Image.new("RGBA", (8, 8), (*RED, 0)), kind, lossless=True) for kind in ("PNG", "WEBP")]
    files += [encode(Image.new("LA", (8, 8), (40, 0))), encode(palette, transparency=1)]
    files += [encode(palette, "GIF", transparency=1), tiff_with_palette_and_alpha(1, 0, [BLUE, RED])]
    files += [encode(Image.new("L", (8, 8), 40), transparency=40)]
    files += [encode(Image.new("RGB", (8, 8), RED), transparency=RED)]
    files += [png(8, 8, 16, 0, rows, (b"tRNS", struct.pack(">H", 1000)))]
    for data in files:
        with pytest.raises(ValueError, match="transparent everywhere: give it a background"):
            decode_image(data, 8, 8)


def bmp_with_alpha(left: int, right: int) -> bytes:
    """Write a red BMP of 8 x 8 pixels, with the alpha of its halves."""
    pixels = struct.pack("<8I", *[left << 24 | 0xFF0000] * 4, *[right << 24 | 0xFF0000] * 4) * 8
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 56, 8, 8, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 70 + len(pixels), 0, 0, 70) + header + pixels


def test_a_bmp_whose_alpha_is_zero_everywhere_shows_its_colours() -> None:
    with Image.open(io.BytesIO(bmp_with_alpha(0, 0))) as image:
        assert image.mode == "RGBA"
    assert halves(bmp_with_alpha(0, 0)) == (RED, RED)
    assert halves(bmp_with_alpha(255, 0)) == (RED, WHITE)


def test_transparent_palette_entries_show_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*BLUE, *RED])
    assert colour(encode(image)) == RED
    assert colour(encode(image, transparency=0)) == RED
    assert colour(encode(image, transparency=bytes([255, 128]))) == (255, 127, 127)
    image.paste(0, (0, 0, 4, 8))
    assert halves(encode(image, transparency=1)) == (BLUE, WHITE)
    assert halves(encode(image, "GIF", transparency=1)) == (BLUE, WHITE)


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
    for alpha, expected in ((255, RED), (128, (255, 127, 127))):
        assert colour(tiff_with_palette_and_alpha(1, alpha, [BLUE, RED])) == expected


def test_transparent_colour_of_grey_and_rgb_shows_white() -> None:
    grey, red = Image.new("L", (8, 8), 40), Image.new("RGB", (8, 8), RED)
    grey.paste(90, (4, 0, 8, 8))
    red.paste(BLUE, (4, 0, 8, 8))
    assert halves(encode(grey, transparency=40)) == (WHITE, (90, 90, 90))
    assert halves(encode(red, transparency=RED)) == (WHITE, BLUE)
    rows = (b"\0" + struct.pack(">8H", *[1000] * 4, *[2000] * 4)) * 8
    assert halves(png(8, 8, 16, 0, rows, (b"tRNS", struct.pack(">H", 1000)))) == (WHITE, (8, 8, 8))
    rows = (b"\0" + struct.pack(">H", 1000) * 8) * 8
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


def tiff_of_grey(values: bytes, bits: int, sample_format: int = 1, photometric: int = 1, width: int = 256) -> bytes:
    """Write an uncompressed TIFF of one row."""
    tags = [(256, 4, 1, width), (257, 4, 1, 1), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric)]
    tags += [(273, 4, 1, 8 + 2 + 12 * 10 + 4), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, len(values))]
    tags += [(339, 3, 1, sample_format)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + bytes(4)
    return b"II*\0\x08\0\0\0" + directory + values


LEVELS = np.arange(256)
UINT32 = LEVELS.astype(np.uint64) * 0x01010101
WHITE_IS_ZERO = {
    "1 bit": (np.packbits(LEVELS < 128).tobytes(), 1, 1),
    "8 bits": ((255 - LEVELS).astype("u1").tobytes(), 8, 1),
    "16 bits": ((65535 - LEVELS * 257).astype("<u2").tobytes(), 16, 1),
    "floats": ((1 - LEVELS / 255).astype("<f4").tobytes(), 32, 3),
}


@pytest.mark.parametrize("kind", WHITE_IS_ZERO)
def test_where_a_tiff_says_that_white_is_zero_it_is(kind: str) -> None:
    values, bits, sample_format = WHITE_IS_ZERO[kind]
    decoded = decode_image(tiff_of_grey(values, bits, sample_format, photometric=0), 1, 256)
    expected = torch.tensor((LEVELS >= 128) * 255 if bits == 1 else LEVELS)
    assert_close(decoded, expected.expand(3, 1, 256), 1)


def test_white_of_12_bits_is_4095() -> None:
    levels = np.rint(LEVELS * (4095 / 255)).astype(np.uint16)
    even, odd = levels[::2], levels[1::2]
    packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], -1).astype(np.uint8).tobytes()
    assert_close(decode_image(tiff_of_grey(packed, 12), 1, 256), torch.tensor(LEVELS).expand(3, 1, 256), 1)


def test_unsigned_32_bits_are_not_negative() -> None:
    data = tiff_of_grey(UINT32.astype("<u4").tobytes(), 32)
    assert_close(decode_image(data, 1, 256), torch.tensor(LEVELS).expand(3, 1, 256), 1)


def test_white_of_signed_16_bits_is_32767_and_negative_values_are_black() -> None:
    values = np.where(LEVELS < 2, -5, LEVELS * 32767 // 255).astype("<i2")
    expected = torch.tensor(np.where(LEVELS < 2, 0, LEVELS))
    assert_close(decode_image(tiff_of_grey(values.tobytes(), 16, 2), 1, 256), expected.expand(3, 1, 256), 1)


def test_values_that_are_no_numbers_are_black() -> None:
    values = np.array([[np.nan, -np.inf, -3.0, 1.0]], np.float32)
    decoded = decode_image(encode(Image.fromarray(values), "TIFF"), 1, 4)
    assert decoded[0].tolist() == [[0, 0, 0, 255]]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_colours_of_a_profile_become_those_of_srgb(space: str, file_format: str) -> None:
    primaries, gamma = SPACES[space]
    stored = (90, 140, 110)
    image = Image.new("RGB", (8, 8), stored)
    data = encode(image, file_format, icc_profile=rgb_profile(primaries, gamma), quality=100)
    expected = to_srgb(stored, primaries, gamma)
    assert max(abs(a - b) for a, b in zip(expected, stored, strict=True)) > 3, "the profile matters"
    assert max(abs(a - b) for a, b in zip(colour(data), expected, strict=True)) <= 3


def test_a_profile_decides_the_colours_beside_transparency_too() -> None:
    primaries, gamma = SPACES["ProPhoto"]
    image = Image.new("RGBA", (8, 8), (90, 140, 110, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    left, right = halves(encode(image, icc_profile=rgb_profile(primaries, gamma)))
    assert left == WHITE
    expected = to_srgb((90, 140, 110), primaries, gamma)
    assert max(abs(a - b) for a, b in zip(right, expected, strict=True)) <= 3


def test_a_profile_of_grey_is_used() -> None:
    for image in (Image.new("L", (8, 8), 128), Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))):
        light = (128 / 255) ** 1.8
        expected = round(255 * (1.055 * light ** (1 / 2.4) - 0.055))
        level, *others = colour(encode(image, icc_profile=grey_profile(1.8)))
        assert abs(level - expected) <= 1 and others == [level, level]
        assert expected > 135, "the profile matters"


def test_a_profile_of_inks_is_used() -> None:
    profile = cmyk_profile(ink_lightness=50)
    for file_format in ("JPEG", "TIFF"):
        assert colour(encode(Image.new("CMYK", (8, 8)), file_format, icc_profile=profile)) == WHITE
        level = colour(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), file_format, icc_profile=profile))
        assert max(abs(value - 119) for value in level) <= 2, "L* = 50 is 119 in sRGB"


def test_a_profile_that_does_not_fit_is_left_alone() -> None:
    rgb = rgb_profile(*SPACES["ProPhoto"])
    for profile in (b"", b"no profile", rgb[:200], bytes(3000), cmyk_profile(50), rgb.replace(b"acsp", b"xxxx")):
        assert colour(encode(Image.new("RGB", (8, 8), (90, 140, 110)), icc_profile=profile)) == (90, 140, 110)
    red, green, blue = colour(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", icc_profile=rgb))
    assert red > 240 and green < 15 and blue < 15


def gamma_png(gamma: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a grey PNG of value 128; the gamma is in units of 1/100,000."""
    return png(8, 8, 8, 0, (b"\0" + b"\x80" * 8) * 8, *chunks, (b"gAMA", struct.pack(">I", gamma)))


@pytest.mark.parametrize(("gamma", "level"), [(100_000, 188), (55_556, 146), (60_000, 153)])
def test_the_gamma_of_a_png_is_corrected(gamma: int, level: int) -> None:
    """Light is v^(1 / gamma); the levels are those of IEC 61966-2-1 for 128 / 255."""
    assert colour(gamma_png(gamma)) == (level,) * 3


@pytest.mark.parametrize("gamma", [45_455, 46_000])
def test_the_usual_gamma_of_a_png_changes_nothing(gamma: int) -> None:
    assert colour(gamma_png(gamma)) == (128,) * 3


def test_srgb_goes_before_gamma_and_a_gamma_of_zero_is_ignored() -> None:
    assert colour(gamma_png(100_000, (b"sRGB", b"\0"))) == (128,) * 3
    assert colour(gamma_png(0)) == (128,) * 3
