"""A damaged shard, and the row that each of its images must get.

A row is DONE, or the stage and a pattern of the error; the empty key stands for the shard as a whole.
"""

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from helpers.tars import END, file
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


X, Y, PNG = good("x"), good("y"), file("x.png", png(1))
IMAGE_END = X.index(b"x.txt")
IS_DONE: dict[str, Row] = {"x": DONE}
IRREGULAR: dict[str, Row] = {"x": ("shard", "'x.png' is no regular file; pack with 'tar --dereference")}
NO_HEADER = "neither header nor end marker"


def with_block(content: bytes, start: int, block: bytes) -> bytes:
    return content[:start] + block + content[start + len(block) :]


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
