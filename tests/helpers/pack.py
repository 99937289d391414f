"""Folders of images, and the shards that `nti-batch pack` makes of them."""

import re
import tarfile
from pathlib import Path

import pytest

from helpers.tiny import png
from nti_batch.cli import main

NAMES = ("a", "b-2", "b", "d e/ü 'x'", "d e/f/日本.v2", "z" * 200, "émile\n")
"""Awkward file names; '-' sorts before '.', and a folder sorts below its own name."""


def write_folder(folder: Path, names: tuple[str, ...] = NAMES, ending: str = ".png") -> Path:
    """Write images of these names, with captions beside them."""
    for number, name in enumerate(names):
        path = folder / (name + ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        (folder / f"{name}.txt").write_text(f"  image {number} of {name!r} é\n", encoding="utf-8")
    return folder


def pack(source: Path, out: Path, *more: str) -> int:
    """Run `nti-batch pack` with small shards, and return its exit code."""
    return main(["pack", str(source), str(out), "--shard_images=3", *more])


def members(out: Path) -> dict[str, bytes]:
    """Read the members of all tars, by '<shard>/<member>'."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                stream = tar.extractfile(member)
                assert stream is not None
                found[f"{path.stem}/{member.name}"] = stream.read()
    return found


def shards(out: Path) -> dict[str, bytes]:
    """Read all files of a pack but its plan."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "pack.json"}


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line on standard error that says why."""
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def failures(err: str) -> dict[str, str]:
    """Return 'stage: reason' by path, from the lines about images on standard error."""
    found = re.findall(r"^'(.+)': (\w+: .+)$", err, re.MULTILINE)
    assert len(found) == len(dict(found)) == err.count("\n")
    return dict(found)
