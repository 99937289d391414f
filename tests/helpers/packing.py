"""Folders to pack, and what packing them gave."""

import tarfile
from pathlib import Path

from helpers.tiny import png
from nti_batch.cli import main

NAMES = ("a", "b-2", "b", "d e/ü 'x'", "d e/f/日本.v2", "z" * 200, "émile\n")
"""What files may be called, and where; '-' is before '.', and a folder is below its own name."""


def write_folder(folder: Path, names: tuple[str, ...] = NAMES, ending: str = ".png") -> Path:
    """Pictures of these names with captions beside them."""
    for number, name in enumerate(names):
        path = folder / (name + ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        (folder / f"{name}.txt").write_text(f"  picture {number} of {name!r} é\n", encoding="utf-8")
    return folder


def pack(source: Path, out: Path, *more: str) -> int:
    """Small shards."""
    return main(["pack", str(source), str(out), "--shard_images=3", *more])


def members(out: Path) -> dict[str, bytes]:
    """Those of all tars, by '<shard>/<member>'."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                stream = tar.extractfile(member)
                assert stream is not None
                found[f"{path.stem}/{member.name}"] = stream.read()
    return found
