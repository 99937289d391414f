"""Where shards end, and that only the same source and limits continue a pack."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.pack import members, pack, refusal, shards, write_folder
from helpers.tiny import captioned, write_shard

from nti_batch.cli import main


def test_a_shard_ends_where_its_bytes_would_be_too_many(tmp_path: Path):
    source = write_folder(tmp_path / "source", ("a", "b", "c", "d", "e"), ".jpg")
    for name, size in {"a": 60, "b": 40, "c": 500, "d": 1, "e": 99}.items():
        (source / f"{name}.jpg").write_bytes(bytes(size))
    assert main(["pack", str(source), str(tmp_path / "out"), "--shard_bytes=100"]) == 0
    images = [name for name in members(tmp_path / "out") if name.endswith(".jpg")]
    assert [name.removesuffix(".jpg") for name in images] == [
        *("00000/000000000", "00000/000000001"),
        "00001/000010000",
        *("00002/000020000", "00002/000020001"),
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: (s / "x.png").write_bytes(b"x"), "had 4 images and has 5 now: shard 00001 held 1 images, 'd.png'"),
        (lambda s: (s / "b.png").write_bytes(b"longer"), "shard 00000 held 3 images, 'a.png' to 'c.png', and"),
        (lambda s: (s / "d.txt").write_text("in other words"), "shard 00001 held 1 images, 'd.png' to 'd.png', and"),
        (
            lambda s: (s / "d.png").unlink() or (s / "d.txt").unlink(),
            "had 4 images and has 3 now: shard 00001 held 1 images, 'd.png' to 'd.png', and would hold nothing now",
        ),
        (lambda s: os.utime(s / "d.png", (1, 1)), "with other paths, captions, sizes or times of change"),
    ],
)
def test_another_source_is_refused_with_the_first_difference(
    tmp_path: Path, change: Callable[[Path], object], text: str, capsys: pytest.CaptureFixture[str]
):
    source, out = write_folder(tmp_path / "source", ("a", "b", "c", "d")), tmp_path / "out"
    assert pack(source, out) == 0
    before = shards(out)
    change(source)
    capsys.readouterr()
    assert pack(source, out) == 2
    assert text in refusal(capsys)
    assert shards(out) == before


def test_other_limits_and_foreign_tars_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = write_folder(tmp_path / "source", ("a", "b")), tmp_path / "out"
    assert pack(source, out) == 0
    capsys.readouterr()
    assert main(["pack", str(source), str(out), "--shard_images=2"]) == 2
    assert "at most 3 images and 1000000000 bytes, and the command asks for 2 and 1000000000" in refusal(capsys)
    write_shard(tmp_path / "00000.tar", captioned(1))
    assert pack(source, tmp_path) == 2
    assert "holds tars and no pack.json" in refusal(capsys)
    (out / "pack.json").write_text("{}")
    assert pack(source, out) == 2
    assert "pack.json is damaged" in refusal(capsys)
    assert pack(source, tmp_path / "00000.tar" / "out") == 2
    assert "cannot be written: Not a directory" in refusal(capsys)
