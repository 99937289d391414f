"""`nti-batch export --format images`: edits as plain files, and the table of their scores."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.format_runs import EDIT_SETTINGS, edited
from helpers.image_files import encode, gradient
from helpers.inversions import KEYS, ORIGIN, SETTINGS, UNIT
from helpers.runs import create_run
from helpers.tiny import write_shard
from PIL import Image

from nti_batch.cli import main
from nti_batch.data.fit import source_place
from nti_batch.data.images import decode_image
from nti_batch.output.edits import EDIT
from nti_batch.output.run_folder import OutputRun
from nti_batch.records import EditedImage, Failure, Fit, Original, WorkUnit

SOURCE = gradient(40, 60)


def write_edits(folder: Path, edits: Sequence[EditedImage], shard: str = "shard[0].tar", fit: Fit = "crop") -> Path:
    """A run of edits, with the run of inversions that it names."""
    create_run(folder / "inverted", replace(SETTINGS, height=16, width=16, fit=fit), [shard])
    settings = replace(EDIT_SETTINGS, inversions=str(folder / "inverted"))
    unit = edits[0].unit if edits else UNIT
    run = OutputRun.create(EDIT, folder / "edits", settings, {unit.shard: shard})
    part = run.new_part(unit, ORIGIN)
    for edit in edits:
        part.add(edit)
    part.add_failure(Failure(unit, "bad", "edit", "a word is missing", "blue"))
    part.commit()
    return run.out


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "edits.csv", newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> np.ndarray:
    """Pixels of a file, uint8 [height, width, 3]."""
    with Image.open(path) as image:
        return np.array(image)


def export(run: Path, folder: Path, *more: str) -> int:
    return main(["export", str(run), "--format", "images", "--output", str(folder), *more])


def test_edits_are_files_and_lines_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_edits(tmp_path, [edited("cup"), replace(edited("cup"), name="red one", psnr_unedited=None)])
    out = tmp_path / "exported"
    assert export(run, out) == 3
    assert "2 edits written, 1 left out, for the reasons in edits.csv" in capsys.readouterr().out
    blue, red, bad = table(out)
    assert (blue["file"], red["file"]) == ("shard_0_/cup+blue.png", "shard_0_/cup+red_one.png")
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == {blue["file"], red["file"]}
    assert np.array_equal(read(out / blue["file"]), edited("cup").pixels.permute(1, 2, 0).numpy())
    assert (blue["shard"], blue["key"], blue["name"], blue["edit_prompt"]) == ("shard[0]", "cup", "blue", "a blue cup")
    assert [blue[name] for name in ("psnr_unedited", "ssim_unedited", "mse_unedited", "seconds", "error")] == [
        *("30.0", "0.9", "0.001", "1.0", "")
    ]
    assert red["psnr_unedited"] == ""
    assert (bad["file"], bad["key"], bad["error"]) == ("", "bad", "a word is missing")


def test_names_are_safe_and_distinct_whatever_the_keys_are(tmp_path: Path):
    keys = [*KEYS, "CUP", "cup", "con", "-rf", "a+blue", "=1+1"]
    run = write_edits(tmp_path, [edited(key) for key in keys])
    out = tmp_path / "exported"
    assert export(run, out) == 3
    files = {line["key"]: line["file"] for line in table(out) if line["file"]}
    assert files.keys() == set(keys)
    assert len({file.casefold() for file in files.values()}) == len(keys)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")} == {
        f"exported/{file}" for file in files.values()
    }


def test_chosen_edits_have_the_names_that_they_have_among_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_edits(tmp_path, [edited("CUP"), edited("cup"), edited("dog")])
    assert export(run, tmp_path / "all") == 3
    assert export(run, tmp_path / "some", "--key", "cup") == 0
    (line,) = table(tmp_path / "some")
    assert line in table(tmp_path / "all") and line["file"] != "shard_0_/cup+blue.png"
    assert export(run, tmp_path / "none", "--key", "cat") == 2
    assert "has no such key: 'cat'" in capsys.readouterr().err


def test_a_damaged_part_is_named_and_its_edits_have_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_edits(tmp_path, [edited("cup")])
    (tar,) = (run / "edits").glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:-1500])
    assert export(run, tmp_path / "out") == 1
    assert "its edits are left out" in capsys.readouterr().err
    assert [line["file"] for line in table(tmp_path / "out")] == ["", ""]
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_an_edit_gets_the_size_and_place_of_its_original(fit: Fit, tmp_path: Path):
    shard = write_shard(tmp_path / "a.tar", {"cup.png": encode(SOURCE), "cup.txt": b"a red cup"})
    fitted = decode_image(encode(SOURCE), 16, 16, fit=fit)
    unit = WorkUnit("a", str(shard), 0, 1)
    edit = replace(edited("cup"), unit=unit, pixels=255 - fitted, original=Original(40, 60, fit))
    run = write_edits(tmp_path, [edit, replace(edit, name="old", original=None)], str(shard), fit)
    out = tmp_path / "out"
    assert export(run, out, "--original_size") == 3
    blue, old, _ = table(out)
    assert old["file"] == "" and "did not record the size" in old["error"]
    image = read(out / blue["file"]).astype(int)
    assert image.shape == (40, 60, 3)
    left, _, right, _ = map(round, source_place(fit, (60, 40), (16, 16)))
    expected = 255 - np.asarray(SOURCE).astype(int)
    assert np.abs(image[:, left:right] - expected[:, left:right]).mean() < 20
    outside = np.asarray(SOURCE)
    assert np.array_equal(image[:, :left], outside[:, :left]) and np.array_equal(image[:, right:], outside[:, right:])


def test_without_the_input_what_was_cropped_away_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shard = write_shard(tmp_path / "a.tar", {"cup.png": encode(SOURCE), "cup.txt": b"a red cup"})
    edit = replace(edited("cup"), unit=WorkUnit("a", str(shard), 0, 1), original=Original(40, 60, "crop"))
    run = write_edits(tmp_path, [edit], str(shard))
    moved = tmp_path / "moved" / "a.tar"
    moved.parent.mkdir()
    shard.rename(moved)
    assert export(run, tmp_path / "out", "--original_size") == 3
    assert table(tmp_path / "out")[0]["error"] == "its input image cannot be read"
    assert export(run, tmp_path / "out", "--original_size", f"--data.shards={moved}") == 3
    assert read(tmp_path / "out" / table(tmp_path / "out")[0]["file"]).shape == (40, 60, 3)


def test_a_run_of_the_other_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = write_edits(tmp_path, [edited("cup")])
    assert export(tmp_path / "inverted", tmp_path / "out") == 2
    assert "is a run of `nti-batch invert`" in capsys.readouterr().err
    assert main(["export", str(run), "--output", str(tmp_path / "out"), "--original_size"]) == 2
    assert "--original_size is for images: add --format images" in capsys.readouterr().err
    assert main(["export", str(run), "--output", str(tmp_path / "out")]) == 2
