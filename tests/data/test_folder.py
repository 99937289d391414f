"""`--data.images`: a folder of images is inverted like a shard, and every other command works on the result."""

import json
import os
from pathlib import Path
from zlib import crc32

import pytest
import torch
from helpers.image_files import encode, gradient
from helpers.jobs import arguments, files, ids, rows
from helpers.pack import NAMES, members, pack, write_folder
from helpers.tiny import png

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.data.samples import read_unit
from nti_batch.data.shard_reader import read_keys
from nti_batch.data.shards import check_folder, work_units
from nti_batch.records import Failure


def invert(model: Path, folder: Path, out: Path, *more: str) -> list[str]:
    """Arguments of a quick job on a folder."""
    command = arguments(model, "", out, f"--data.images={folder}", *more)
    return [argument for argument in command if not argument.startswith("--data.shards")]


def test_a_folder_gives_the_inversions_that_its_shards_give(tiny_model: Path, tmp_path: Path):
    """The batch size is 1, so that the batches and hence the bits are equal."""
    source = write_folder(tmp_path / "source")
    assert pack(source, tmp_path / "shards") == 0
    assert main(arguments(tiny_model, tmp_path / "shards" / "*.tar", tmp_path / "a", "--model.batch_size=1")) == 0
    assert main(invert(tiny_model, source, tmp_path / "b", "--model.batch_size=1")) == 0
    paths = {
        metadata["key"]: metadata["path"]
        for metadata in (json.loads(c) for name, c in members(tmp_path / "shards").items() if name.endswith(".json"))
    }
    packed = {paths[stored.key]: stored for stored in read_inversions(tmp_path / "a")}
    loose = {f"{stored.key}.png": stored for stored in read_inversions(tmp_path / "b")}
    assert len(loose) == len(NAMES)
    assert packed.keys() == loose.keys()
    for path, stored in loose.items():
        assert stored.shard == "images"
        assert stored.prompt == packed[path].prompt
        assert torch.equal(stored.noise_latents, packed[path].noise_latents)
        assert torch.equal(stored.null_embeddings, packed[path].null_embeddings)


def test_every_other_command_works_from_any_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_folder(tmp_path / "my photos", ("a", "d/b", "c"))
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path / "my photos")
    assert main(invert(tiny_model, Path("."), out)) == 0
    assert ids(out) == [("images", "a"), ("images", "c"), ("images", "d/b")]
    assert (out / "preview.png").exists()
    monkeypatch.chdir(tmp_path)
    before = files(out)
    assert main(invert(tiny_model, Path("my photos/"), out)) == 0, "the same folder, written otherwise"
    assert files(out) == before
    assert main(["status", str(out), "--exit_code"]) == 0
    assert "3 done, 0 failed, 0 missing of 3 images" in capsys.readouterr().out
    assert main(["verify", str(out), "--recompute=3"]) == 0
    edits = tmp_path / "edits.jsonl"
    edits.write_text(json.dumps({"key": "d/b", "edit_prompt": "image 1", "mask": [0, 8], "mask_size": [4, 4]}))
    edit = [f"--data.inversions={out}", f"--data.edits={edits}", "--trainer.accelerator=cpu"]
    assert main(["edit", *edit, f"--output.dir={tmp_path / 'edits'}"]) == 0
    (image,) = (tmp_path / "edits" / "edits").glob("*.jsonl")
    assert '"psnr_unedited": null' not in image.read_text(), "the input was found"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "my photos").rename(tmp_path / "elsewhere" / "my photos")
    assert main(["verify", str(out), f"--data.images={tmp_path / 'elsewhere' / 'my photos'}"]) == 0
    capsys.readouterr()
    assert main(["verify", str(out)]) == 1
    assert "is in the input and not" not in (said := capsys.readouterr().out)
    assert "No such file or directory" in said


def test_every_bad_image_of_a_folder_has_a_row(tiny_model: Path, tmp_path: Path):
    source = write_folder(tmp_path / "source", ("good", "mute", "blank", "twin", "html", "gone", "long/case"))
    (source / "mute.txt").unlink()
    (source / "blank.txt").write_text("")
    (source / "twin.jpg").write_bytes(png(1))
    (source / "html.png").write_bytes(b"<html>")
    (source / "gone.png").unlink()
    (source / "gone.png").symlink_to("nowhere")
    (source / "long" / "case.PNG").write_bytes(png(1))
    (source / "stray.txt").write_text("of nothing")
    (source / "data.json").write_text("{}")
    (source / "link").symlink_to(source / "long")
    out = tmp_path / "out"
    assert main(invert(tiny_model, source, out)) == 3
    found = rows(out)
    assert {key: row.stage for key, row in found.items()} == {
        "good": "",
        "mute": "caption",
        "blank": "caption",
        "twin": "image",
        "html": "image",
        "gone": "shard",
        "long/case": "shard",
        "stray": "image",
        "": "shard",
    }
    assert "there is no .txt member beside .png" in found["mute"].error
    assert "'link' is a link to a folder, which is not followed" in found[""].error
    assert main(["verify", str(out)]) == 0
    (source / "mute.txt").write_text("a caption at last")
    assert main(invert(tiny_model, source, out, "--data.retry_failed=true")) == 3
    assert ids(out) == [("images", "good"), ("images", "mute")]


def test_files_of_every_ending_that_pillow_decodes_are_images(tiny_model: Path, tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for ending, file_format in {"avif": "AVIF", "jp2": "JPEG2000", "jfif": "JPEG", "jpe": "JPEG"}.items():
        (source / f"{ending}.{ending}").write_bytes(encode(gradient(), file_format))
        (source / f"{ending}.json").write_text('{"caption": "a gradient"}')
    out = tmp_path / "out"
    assert main(invert(tiny_model, source, out, "--data.caption=json:caption")) == 0
    assert ids(out) == [("images", name) for name in ("avif", "jfif", "jp2", "jpe")]


def test_captions_may_be_in_json_beside_the_images(tiny_model: Path, tmp_path: Path):
    source = write_folder(tmp_path / "source", ("a",))
    (source / "a.json").write_text('{"caption": "from the JSON"}')
    assert main(invert(tiny_model, source, tmp_path / "out", "--data.caption=json:caption")) == 0
    (stored,) = read_inversions(tmp_path / "out")
    assert stored.prompt == "from the JSON"


def test_images_may_be_added_to_a_folder_and_removed_from_it(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, out = write_folder(tmp_path / "source", ("b", "c")), tmp_path / "out"
    assert main(invert(tiny_model, source, out)) == 0
    before = rows(out)
    write_folder(source, ("a",))
    assert main(["verify", str(out)]) == 1
    assert "images/a: is in the input and not committed" in capsys.readouterr().out
    assert main(["status", str(out)]) == 0
    assert "2 done, 0 failed, 1 missing of 3 images" in capsys.readouterr().out
    assert main(invert(tiny_model, source, out)) == 0
    assert {key: row for key, row in rows(out).items() if key != "a"} == before
    (source / "b.png").unlink()
    (source / "b.txt").unlink()
    assert main(invert(tiny_model, source, out)) == 0
    assert "images: 1 committed images are no longer in the input, such as 'b'" in capsys.readouterr().err
    assert rows(out).keys() == {"a", "b", "c"}


def test_a_folder_that_has_moved_is_the_same_input(tiny_model: Path, tmp_path: Path):
    source, out = write_folder(tmp_path / "source", ("a", "b")), tmp_path / "out"
    assert main(invert(tiny_model, source, out)) == 0
    before = files(out)
    assert main(invert(tiny_model, source.rename(tmp_path / "moved"), out)) == 0
    assert files(out) == before
    assert main(["verify", str(out)]) == 0, "the run knows the new address"


def test_output_below_the_input_is_not_input(tiny_model: Path, tmp_path: Path):
    """The previews of the runs are images, and their logs and rows are JSON."""
    source = write_folder(tmp_path / "source", ("a", "b"))
    for out in (source / "one", source / "two" / "out", source / "one"):
        assert main(invert(tiny_model, source, out)) == 0
        assert ids(out) == [("images", "a"), ("images", "b")]
    assert (source / "one" / "preview.png").exists()


def test_a_folder_and_shards_exclude_each_other(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_folder(tmp_path / "source", ("a",))
    one_of_them = "give one of them, tars with --data.shards or a folder of images with --data.images"
    job = invert(tiny_model, tmp_path / "source", tmp_path / "out")
    for command, text in (
        ([*job, "--data.shards=x.tar"], one_of_them),
        ([argument for argument in job if "source" not in argument], "--data.images or --data.shards must be given"),
        (invert(tiny_model, tmp_path / "nowhere", tmp_path / "out"), "nowhere' is no folder"),
        (arguments(tiny_model, tmp_path / "source", tmp_path / "out"), "or a folder of images with --data.images"),
        (["verify", str(tmp_path / "out"), "--data.shards=x.tar", "--data.images=x"], one_of_them),
    ):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert text in captured.err
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize("units_per_shard", [1, 3])
def test_the_units_of_a_folder_together_give_each_sample_once_in_the_order_of_keys(
    tmp_path: Path, units_per_shard: int
):
    source = write_folder(tmp_path / "source")
    with open(os.fsencode(source) + b"/\xff.png", "wb") as file:
        file.write(png(1))
    url = check_folder(str(source))
    keys = [[row.key for row in read_unit(unit, "txt")] for unit in work_units({"images": url}, units_per_shard)]
    expected = sorted([*NAMES, r"\xff"])
    dealt = [[key for key in expected if crc32(key.encode()) % units_per_shard == i] for i in range(units_per_shard)]
    assert keys == dealt
    assert read_keys(url) == (expected, [])


def test_a_folder_without_images_is_a_damaged_shard(tmp_path: Path):
    (unit,) = work_units({"images": check_folder(str(tmp_path))}, 1)
    (row,) = read_unit(unit, "txt")
    assert row == Failure(unit, "", "shard", "the folder holds no images")
