"""Mutated shards and image files give right samples or an error; nothing crashes, hangs or takes much memory.

This takes some seconds in the suite. With other examples each time, and for about ten minutes:

    pytest tests/data/test_fuzz.py --hypothesis-profile=long
"""

import bz2
import gzip
import lzma
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pytest
from helpers.fuzz import KEYS, SHARD, bounded
from helpers.image_files import encode, gradient
from helpers.mutations import Mutation, mutate, mutations
from helpers.tars import END, header
from hypothesis import given
from hypothesis import strategies as st

from nti_batch.data.images import decode_image
from nti_batch.data.samples import RawSample, read_unit
from nti_batch.data.shard_reader import read_keys
from nti_batch.records import Failure, WorkUnit


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read(path: Path, content: bytes) -> list[RawSample | Failure]:
    """Read all rows of a shard with this content, and check that `read_keys` agrees."""
    path.write_bytes(content)
    with bounded():
        rows = list(read_unit(WorkUnit("s", str(path), 0, 1), "txt"))
        keys, errors = read_keys(str(path))
    assert [row.key for row in rows if row.key] == keys
    assert len({row.key for row in rows}) == len(rows), "no id has two rows"
    assert bool(errors) == any(not row.key for row in rows)
    return rows


def outcome(row: RawSample | Failure) -> tuple[str, str]:
    """Key, and 'ok' or the stage of the failure."""
    return (row.key, row.stage if isinstance(row, Failure) else "ok")


@dataclass
class Walk:
    """Contents that a plain tar certainly has."""

    members: list[tuple[str, str, bytes]]
    """Key, extension, data."""

    end: str
    """'whole', 'damaged', or 'odd' before a block that is valid in a tar but that these tests do not write."""


def walk(content: bytes) -> Walk:
    """Read members up to the first block that is not exactly as these tests write it."""
    members: list[tuple[str, str, bytes]] = []
    start = 0
    while True:
        block, rest = content[start : start + 512], content[start:]
        if not block.strip(b"\0"):
            is_whole = len(rest) >= len(END) and not rest.strip(b"\0")
            return Walk(members, "whole" if is_whole else "damaged")
        name = re.match(rb"([a-z0-9]+)\.(jpg|txt)\0", block)
        size = re.fullmatch(rb"([0-7]{11})\0", block[124:136])
        if not (name and size and block == header(name[0][:-1], int(size[1], 8))):
            return Walk(members, "odd" if has_checksum(block) else "damaged")
        data = content[start + 512 :][: int(size[1], 8)]
        start += 512 + int(size[1], 8) + -int(size[1], 8) % 512
        if len(data) < int(size[1], 8):
            return Walk(members, "damaged")
        members.append((name[1].decode(), name[2].decode(), data))


def has_checksum(block: bytes) -> bool:
    """Return whether a header's checksum is right, or has a form that only a tar reader can judge."""
    if len(block) < 512:
        return False
    if not re.fullmatch(rb"[0-7]{6}\0 ", block[148:156]):
        return True
    unsigned = sum(block[:148]) + 8 * 32 + sum(block[156:])
    signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    return int(block[148:154], 8) in (unsigned, signed)


def expected_rows(members: list[tuple[str, str, bytes]]) -> list[tuple[str, str, bytes, str]]:
    """Return key, 'ok' or stage, image and caption of each group of members."""
    rows = []
    for key, group in groupby(members, itemgetter(0)):
        names = [(extension, data) for _, extension, data in group]
        data = dict(names)
        outcome = "ok"
        try:
            prompt = data["txt"].decode("utf-8-sig").strip()
        except (KeyError, UnicodeDecodeError):
            prompt = ""
        if not prompt:
            outcome = "caption"
        if "jpg" not in data:
            outcome = "image"
        if len(data) < len(names):
            outcome = "shard"
        rows.append((key, outcome, data.get("jpg", b""), prompt))
    return rows


def check_against_walk(rows: list[RawSample | Failure], content: bytes, changes: int) -> None:
    seen = walk(content)
    groups = expected_rows(seen.members)
    certain = groups if seen.end == "whole" else groups[:-1]
    first = {key: (outcome, image, prompt) for key, outcome, image, prompt in reversed(certain)}
    order = list(dict.fromkeys(key for key, *_ in certain))
    assert [outcome(row) for row in rows[: len(order)]] == [(key, first[key][0]) for key in order]
    for row in rows:
        if isinstance(row, RawSample) and row.key in first:
            assert (row.image, row.prompt) == first[row.key][1:]
        elif isinstance(row, RawSample):
            assert row.image in content and row.prompt.encode() in content
    has_error = any(not row.key for row in rows)
    if seen.end == "whole":
        assert len(rows) == len(order) + has_error
        assert has_error == (len(order) < len(groups) or not groups)
    elif seen.end == "damaged":
        assert has_error
    elif changes == 1:
        unharmed = [row for row in rows if row.key in KEYS and isinstance(row, RawSample)]
        assert len(unharmed) == len(KEYS) or any(isinstance(row, Failure) for row in rows), "a loss has an error"


@given(changes=mutations(len(SHARD)))
def test_a_mutated_shard_gives_the_samples_before_the_damage_and_an_error(folder: Path, changes: list[Mutation]):
    content = mutate(SHARD, changes)
    rows = read(folder / "s.tar", content)
    check_against_walk(rows, content, len(changes))
    streamed = read(folder / "s.tar", gzip.compress(content, 1))
    assert [outcome(row) for row in streamed] == [outcome(row) for row in rows]
    assert [r.image for r in streamed if isinstance(r, RawSample)] == [
        r.image for r in rows if isinstance(r, RawSample)
    ]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@given(data=st.data())
def test_a_mutated_compressed_shard_is_read_as_it_was_or_has_an_error(
    folder: Path, compress: Callable[[bytes], bytes], data: st.DataObject
):
    packed = compress(SHARD)
    rows = read(folder / "s.tar", mutate(packed, data.draw(mutations(len(packed)))))
    if any(not row.key for row in rows):
        return
    assert [outcome(row) for row in rows] == [(key, "ok") for key in KEYS]
    for row in rows:
        assert isinstance(row, RawSample)
        assert (row.image, row.prompt) == (f"image {row.key}".encode(), f"caption {row.key}")


SIDEWAYS = {"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"}


IMAGES = {
    "JPEG": encode(gradient(), "JPEG", **SIDEWAYS),
    "PNG": encode(gradient().quantize(64), transparency=3),
    "WEBP": encode(gradient(), "WEBP"),
    "GIF": encode(gradient(), "GIF", save_all=True, append_images=[gradient().rotate(90)]),
    "BMP": encode(gradient(), "BMP"),
    "TIFF": encode(gradient(), "TIFF", compression="tiff_lzw"),
    "PPM": encode(gradient(), "PPM"),
    "JPEG2000": encode(gradient(), "JPEG2000"),
    "AVIF": encode(gradient(), "AVIF"),
}


@pytest.mark.parametrize("file_format", IMAGES)
@given(data=st.data())
def test_a_mutated_image_gives_pixels_of_the_right_shape_or_a_reason(file_format: str, data: st.DataObject):
    content = IMAGES[file_format]
    changed = mutate(content, data.draw(mutations(len(content))))
    try:
        with bounded(megabytes=6000):
            assert decode_image(changed, 8, 12).shape == (3, 8, 12)
    except ValueError as error:
        assert str(error).startswith("image ")
