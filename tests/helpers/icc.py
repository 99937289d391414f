"""ICC profiles written by hand, and what their colours are in sRGB."""

import struct

import numpy as np

Primaries = tuple[tuple[float, float, float], ...]
"""X, Y, Z of red, green and blue at full value, relative to D50."""

SPACES: dict[str, tuple[Primaries, float]] = {
    "Adobe RGB": (((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), 2.19921875),
    "Display P3": (((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)), 1.8),
    "ProPhoto": (((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00008, 0.82491)), 1.8),
}
"""Primaries and exponent of colour spaces (P3 with another exponent than its own, so that the curve matters too)."""

SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
"""Primaries of sRGB (IEC 61966-2-1, adapted to D50)."""


def to_srgb(stored: tuple[int, ...], primaries: Primaries, gamma: float) -> tuple[int, ...]:
    """Convert by the definition: v^gamma is light, light times primaries is XYZ."""
    xyz = np.array(primaries).T @ (np.array(stored) / 255) ** gamma
    light = (np.linalg.inv(np.array(SRGB).T) @ xyz).clip(0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return tuple(np.rint(255 * encoded).astype(int).tolist())


def rgb_profile(primaries: Primaries, gamma: float) -> bytes:
    """Profile of a display with three primaries."""
    columns = {name: _xyz(value) for name, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma)))


def grey_profile(gamma: float) -> bytes:
    """Profile of a grey display."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile(ink_lightness: int) -> bytes:
    """Profile of a printer whose inks all give the same grey, of this L*, and all four together black."""
    ramp = bytes(range(256))
    ink = bytes([round(ink_lightness * 2.55), 128, 128])
    identity = b"".join(_fixed(value) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    grid = b"\xff\x80\x80" + ink * 14 + b"\0\x80\x80"
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + grid + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(value: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, value))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz((0.9642, 1, 0.8249)),
        **tags,
    }
    start, table, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(data), len(padded))
        data += padded
    illuminant = b"".join(map(_fixed, (0.9642, 1, 0.8249)))
    head = struct.pack(">I", start + len(data)) + b"lcms" + bytes([2, 16, 0, 0]) + kind + space + connection
    head += bytes(12) + b"acsp" + bytes(28) + illuminant + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + data
