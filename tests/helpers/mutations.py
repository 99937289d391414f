"""What may happen to the bytes of a file, for hypothesis."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from helpers.tars import forge

Mutation = tuple[Callable[..., bytes], tuple[Any, ...]]
"""A function of the content, and what else it takes: hypothesis prints both."""

_FIELDS = {
    0: [b"a.jpg\0", b"b.txt\0", b"a\0", b"d/.x\0", b"._a.jpg\0", b"a.jpg/\0", b"\xff.jpg\0"],
    100: [b"\0", b"zzz", b"        "],
    124: [
        b"0" * 11 + b"\0",
        b"00000000001\0",
        b"77777777777\0",
        b"\xff" * 12,
        b"\xff" * 10 + b"\xf0\0",
        b"\x80" + b"\x7f" * 11,
    ],
    136: [b"\0", b"-1\0", b"99999999999\0"],
    156: [bytes([kind]) for kind in b"\x000123456789DLKMNSVXgxZ"],
    157: [b"a.jpg\0"],
    257: [b"ustar  \0", b"ustar\x0000", bytes(8)],
    345: [b"prefix\0", b"00000000001\x0000000000002\0"],
    386: [b"00000000000\x0000000000001\0"],
    482: [b"\1", b"\0", b"\x0100000000007\0"],
}
"""Values that mean something at a place in a tar's header."""


def _span(content: bytes, start: int, length: int) -> tuple[bytes, bytes, bytes]:
    start = start % (len(content) + 1)
    return content[:start], content[start : start + length], content[start + length :]


def _flip(content: bytes, start: int, mask: int) -> bytes:
    before, byte, rest = _span(content, start, 1)
    return before + bytes(b ^ mask for b in byte) + rest


def _overwrite(content: bytes, start: int, new: bytes) -> bytes:
    before, old, rest = _span(content, start, len(new))
    return before + new[: len(old)] + rest


def _zero(content: bytes, start: int, length: int) -> bytes:
    before, span, rest = _span(content, start, length)
    return before + bytes(len(span)) + rest


def _cut(content: bytes, end: int) -> bytes:
    return content[:end]


def _delete(content: bytes, start: int, length: int) -> bytes:
    before, _, rest = _span(content, start, length)
    return before + rest


def _copy(content: bytes, start: int, length: int, to: int) -> bytes:
    _, span, _ = _span(content, start, length)
    before, _, rest = _span(content, to, 0)
    return before + span + rest


def _move(content: bytes, start: int, length: int, to: int) -> bytes:
    before, span, rest = _span(content, start, length)
    left, _, right = _span(before + rest, to, 0)
    return left + span + right


def _swap(content: bytes, one: int, other: int) -> bytes:
    blocks = [content[i : i + 512] for i in range(0, len(content), 512)] or [b""]
    i, j = one % len(blocks), other % len(blocks)
    blocks[i], blocks[j] = blocks[j], blocks[i]
    return b"".join(blocks)


def _forge(content: bytes, which: int, field: tuple[int, bytes]) -> bytes:
    """Another value in a header, and its checksum mended, so that every reader believes it."""
    places = [i for i in range(0, len(content) - 511, 512) if content[i + 257 : i + 262] == b"ustar"]
    if not places:
        return content
    start = places[which % len(places)]
    return content[:start] + forge(content[start:], field)


def _fields() -> SearchStrategy[tuple[int, bytes]]:
    known = [(start, value) for start, values in _FIELDS.items() for value in values]
    return st.sampled_from(known) | st.tuples(st.integers(0, 500), st.binary(min_size=1, max_size=12))


def mutations(size: int, only_lost: bool = False) -> SearchStrategy[list[Mutation]]:
    """One to four changes of a content of about this size; with `only_lost` those of a write that never happened."""
    place = st.integers(0, size) | st.integers(0, size // 512).map(lambda block: 512 * block)
    length = st.integers(1, 64) | st.integers(1, size) | st.integers(1, 8).map(lambda blocks: 512 * blocks)

    def of(function: Callable[..., bytes], *drawn: SearchStrategy[object]) -> SearchStrategy[Mutation]:
        return st.tuples(st.just(function), st.tuples(*drawn))

    lost = of(_zero, place, length) | of(_cut, place)
    if only_lost:
        return st.lists(lost, min_size=1, max_size=2)
    changed = of(_flip, place, st.integers(1, 255)) | of(_overwrite, place, st.binary(min_size=1, max_size=600))
    shifted = of(_delete, place, length) | of(_copy, place, length, place) | of(_move, place, length, place)
    forged = of(_swap, place, place) | of(_forge, st.integers(0, 50), _fields())
    return st.lists(lost | changed | shifted | forged, min_size=1, max_size=4)


def mutate(content: bytes, changes: list[Mutation]) -> bytes:
    """All changes, one after the other."""
    for function, values in changes:
        content = function(content, *values)
    return content
