"""Records that are computed again: failed ones, those with changed input, and those that the user names."""

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.edits import edit
from helpers.edits import rows as edit_rows
from helpers.jobs import arguments, ids, rows
from helpers.pack import write_folder
from helpers.tiny import captioned, png, write_model, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main


def on_folder(model: Path, folder: Path, out: Path, *more: str) -> list[str]:
    """Arguments of a quick job on a folder."""
    command = arguments(model, "", out, f"--data.images={folder}", *more)
    return [argument for argument in command if not argument.startswith("--data.shards")]


def committed(out: Path) -> dict[Path, bytes]:
    """Content of the parts and manifests of a run."""
    return {path: path.read_bytes() for path in sorted((out / "inversions").glob("*.00*"))}


def generations(out: Path) -> dict[str, int]:
    """Generation of the row that counts of each image."""
    return {key: row.generation for key, row in rows(out).items()}


def test_an_image_whose_bytes_have_changed_is_named_and_computed_again_when_asked(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, out = write_folder(tmp_path / "source", ("a", "b", "c", "d")), tmp_path / "out"
    assert main(on_folder(tiny_model, source, out)) == 0
    before = committed(out)
    (source / "a.png").write_bytes(png(77))
    (source / "c.txt").write_text("another caption")
    for _ in range(2):
        capsys.readouterr()
        assert main(on_folder(tiny_model, source, out)) == 0
        named = re.findall(r"images: the input of (.+) has changed since it was committed", capsys.readouterr().err)
        assert sorted("; ".join(named).split("; ")) == ["a", "c"]
        assert committed(out) == before
    assert main(on_folder(tiny_model, source, out, "--data.redo_changed=true")) == 0
    assert {path: content for path, content in committed(out).items() if path in before} == before
    assert generations(out) == {"a": 1, "b": 0, "c": 1, "d": 0}
    assert {stored.key: stored.prompt for stored in read_inversions(out)}["c"] == "another caption"
    after = committed(out)
    capsys.readouterr()
    assert main(on_folder(tiny_model, source, out, "--data.redo_changed=true")) == 0
    assert "has changed" not in capsys.readouterr().err
    assert committed(out) == after
    assert main(["verify", str(out)]) == 0


def test_images_that_the_user_names_are_computed_again(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard, out = write_shard(tmp_path / "a.tar", captioned(3)), tmp_path / "out"
    job = arguments(tiny_model, shard, out)
    assert main(job) == 0
    assert main([*job, "--data.redo", "a/000", "a/002"]) == 0
    assert main([*job, "--data.redo=[a/002]"]) == 0
    assert generations(out) == {"000": 1, "001": 0, "002": 2}
    assert ids(out) == [("a", "000"), ("a", "001"), ("a", "002")]
    for wrong, text in (
        ("a/003", "data.redo names a/003, and"),
        ("b/000", "data.redo names b/000, and"),
        ("000", "data.redo is '000', allowed: SHARD/KEY"),
    ):
        capsys.readouterr()
        assert main([*job, "--data.redo", wrong]) == 2
        assert text in capsys.readouterr().err
    assert main(["verify", str(out)]) == 0


def test_a_failure_is_tried_again_without_a_change_of_what_is_committed(tiny_model: Path, tmp_path: Path):
    source, out = write_folder(tmp_path / "source", ("a", "b")), tmp_path / "out"
    (source / "a.png").write_bytes(b"<html>")
    assert main(on_folder(tiny_model, source, out)) == 3
    before = committed(out)
    assert main(on_folder(tiny_model, source, out, "--data.retry_failed=true")) == 3
    (source / "a.png").write_bytes(png(1))
    assert main(on_folder(tiny_model, source, out, "--data.retry_failed=true")) == 0
    assert {path: content for path, content in committed(out).items() if path in before} == before
    assert generations(out) == {"a": 2, "b": 0}


def test_a_damaged_shard_that_is_replaced_by_a_whole_one_is_recovered(tiny_model: Path, tmp_path: Path):
    """No flag is needed: the shard has another size."""
    shard, out = write_shard(tmp_path / "a.tar", captioned(4)), tmp_path / "out"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert main(arguments(tiny_model, shard, out)) == 3
    assert any(row.stage == "shard" for row in rows(out).values())
    shard.write_bytes(whole)
    assert main(arguments(tiny_model, shard, out, "--data.retry_failed=true")) == 0
    assert ids(out) == [("a", f"{n:03d}") for n in range(4)]
    assert rows(out)[""].status == "recovered"
    assert main(["verify", str(out)]) == 0
    assert main(["status", str(out), "--exit_code"]) == 0


def test_edits_of_an_image_that_was_inverted_again_are_named_and_made_again_when_asked(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, out, edits = write_folder(tmp_path / "source", ("a", "b")), tmp_path / "out", tmp_path / "edits"
    assert main(on_folder(tiny_model, source, out)) == 0
    assert main(edit(out, edits)) == 0
    (source / "a.png").write_bytes(png(77))
    assert main(on_folder(tiny_model, source, out, "--data.redo_changed=true")) == 0
    capsys.readouterr()
    assert main(edit(out, edits)) == 0
    assert "has changed since it was committed" in capsys.readouterr().err
    assert main(edit(out, edits, "--data.redo_changed=true")) == 0
    assert {key: row.generation for (_, key, _), row in edit_rows(edits).items()} == {"a": 1, "b": 0}
    assert main(edit(out, edits, "--data.redo", "images/b")) == 0
    assert {key: row.generation for (_, key, _), row in edit_rows(edits).items()} == {"a": 1, "b": 1}
    assert main(["verify", str(edits)]) == 0


def test_a_shard_at_another_address_is_the_same_shard(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shard, out = write_shard(tmp_path / "a.tar", captioned(3)), tmp_path / "out"
    assert main(arguments(tiny_model, shard, out)) == 0
    before = committed(out)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    shard.rename(tmp_path / "there" / "a.tar")
    for address in ("there/a.tar", "./there/a.tar", f"{tmp_path}/there/a.tar", f"file:{tmp_path}/there/a.tar"):
        assert main(arguments(tiny_model, address, out)) == 0
        assert committed(out) == before
        assert main(["status", str(out), "--exit_code"]) == 0
        assert len(json.loads((out / "run.json").read_text())["shards"]) == 1


def test_status_warns_of_a_shard_that_is_gone(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shard, out = write_shard(tmp_path / "a.tar", captioned(3)), tmp_path / "out"
    assert main(arguments(tiny_model, shard, out, "--data.limit=1")) == 0
    shard.rename(tmp_path / "b.tar")
    capsys.readouterr()
    assert main(["status", str(out)]) == 0
    assert f"{shard} cannot be read to its end, so not all its images are counted" in capsys.readouterr().err


def test_a_model_that_has_changed_is_refused_by_every_command_that_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Two models are never mixed in one run, nor are edits made with another model than their inversions."""
    model, out = write_model(tmp_path / "model"), tmp_path / "out"
    job = arguments(model, write_shard(tmp_path / "a.tar", captioned(1)), out)
    assert main(job) == 0
    shutil.rmtree(model)
    write_model(model, seed=1)
    for command, text in (
        (job, "model.fingerprint: "),
        (edit(out, tmp_path / "edits"), "is another one than the run was made with"),
        (["edit", f"--inversions={out}", "--key=000", f"--output={tmp_path}/x.png"], "is another one than the run"),
        (["verify", str(out), "--recompute=1"], "is another one than the run was made with"),
    ):
        capsys.readouterr()
        assert main(command) == 2
        assert text in capsys.readouterr().err
