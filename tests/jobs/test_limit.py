"""`--data.limit`: the first images of the input, whatever the ranks and units; the same command without it resumes."""

import json
import re
from pathlib import Path

import pytest
from helpers.jobs import arguments, ids, status_of
from helpers.tiny import captioned, png, write_shard

from nti_batch.cli import main
from nti_batch.output.edits import open_edits
from nti_batch.plans.open_plan import open_plan

FIRST = [("s0", f"{n:03}") for n in range(5)] + [("s1", f"{n:03}") for n in range(5, 7)]
ALL = FIRST + [("s1", f"{n:03}") for n in range(7, 10)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two shards of five images."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(2):
        write_shard(folder / f"s{number}.tar", captioned(5, first=5 * number))
    return folder


def invert(model: Path, shards: Path, out: Path, *more: str) -> int:
    return main(arguments(model, shards / "*.tar", out, *more))


@pytest.fixture(scope="module")
def limited(tiny_model: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invert the first seven images."""
    out = tmp_path_factory.mktemp("limited") / "out"
    assert invert(tiny_model, shards, out, "--data.limit=7") == 0
    return out


def test_the_first_images_are_done_and_the_run_is_resumed_without_the_limit(
    tiny_model: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert invert(tiny_model, shards, out, "--data.limit=7") == 0
    said = capsys.readouterr().out
    assert "7 done, 0 failed, 0 missing of 7 images" in said
    assert "data.limit is 7: the rest is not counted; run without it for the rest" in said
    assert ids(out) == FIRST
    assert not list((out / "inversions").glob("*.complete")), "no work unit is marked as complete"
    assert status_of(out, capsys)["missing"] == 3
    settings = (out / "run.json").read_bytes()
    parts = {path.name: path.read_bytes() for path in (out / "inversions").glob("*.tar")}
    assert invert(tiny_model, shards, out, "--data.limit=7") == 0
    assert invert(tiny_model, shards, out, "--data.limit=2") == 0
    assert ids(out) == FIRST, "a limit that is reached computes nothing"
    assert invert(tiny_model, shards, out) == 0
    assert ids(out) == ALL
    assert (out / "run.json").read_bytes() == settings
    assert all((out / "inversions" / name).read_bytes() == content for name, content in parts.items())
    assert main(["verify", str(out)]) == 0


@pytest.mark.parametrize("units", [1, 5])
def test_the_first_images_are_the_same_whatever_the_work_units(
    tiny_model: Path, shards: Path, tmp_path: Path, units: int
) -> None:
    assert invert(tiny_model, shards, tmp_path / "out", "--data.limit=7", f"--data.units_per_shard={units}") == 0
    assert ids(tmp_path / "out") == FIRST


def test_the_first_images_are_the_same_for_jobs_that_share_a_run(
    tiny_model: Path, shards: Path, tmp_path: Path
) -> None:
    for part in ("0/2", "1/2"):
        assert invert(tiny_model, shards, tmp_path / "out", "--data.limit=7", f"--data.part={part}") == 0
    assert ids(tmp_path / "out") == FIRST


def test_a_failed_image_counts_and_a_shard_that_cannot_be_read_is_named(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar")
    write_shard(tmp_path / "b.tar", {"x.png": b"no image", "x.txt": b"x", **captioned(3)})
    assert invert(tiny_model, tmp_path, tmp_path / "out", "--data.limit=2") == 3
    assert ids(tmp_path / "out") == [("b", "000")]
    assert re.search(r"WARNING .*a: byte 0 has neither header nor end marker", caplog.text)


def test_a_folder_has_a_limit_too_and_a_dry_run_counts_it(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "abcdef":
        (folder / f"{name}.png").write_bytes(png(1))
        (folder / f"{name}.txt").write_text(f"image {name}")
    job = [word for word in arguments(tiny_model, "", tmp_path / "out") if not word.startswith("--data.shards")]
    job += [f"--data.images={folder}", "--data.limit=4"]
    assert main([*job, "--dry_run"]) == 0
    assert "about 4 left" in capsys.readouterr().out
    assert main(job) == 0
    assert [key for _, key in ids(tmp_path / "out")] == list("abcd")


def edited(out: Path) -> list[tuple[str, str, str]]:
    """Return shard, key and name of the committed edits."""
    run = open_edits(out)
    return sorted((row.shard, row.key, row.name) for unit in open_plan(out).units for row in run.rows(unit))


def test_the_first_edits_are_those_of_the_list_or_of_the_first_keys(limited: Path, tmp_path: Path) -> None:
    edit = ["edit", f"--data.inversions={limited}", "--trainer.accelerator=cpu", "--data.limit=3"]
    assert main([*edit, f"--output.dir={tmp_path / 'all'}"]) == 0
    assert edited(tmp_path / "all") == [("s0", f"{n:03}", "reconstruction") for n in range(3)]
    keys = ("006", "000", "004", "002")
    listed = [{"shard": "s1" if key == "006" else "s0", "key": key, "edit_prompt": "a cup"} for key in keys]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, listed)))
    edit += [f"--data.edits={tmp_path / 'edits.jsonl'}", f"--output.dir={tmp_path / 'listed'}"]
    assert main(edit) == 0
    assert [key for _, key, _ in edited(tmp_path / "listed")] == ["000", "004", "006"]
    assert main([word for word in edit if not word.startswith("--data.limit")]) == 0
    assert [key for _, key, _ in edited(tmp_path / "listed")] == ["000", "002", "004", "006"]


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--data.limit=0", "data.limit is 0, allowed: at least 1"),
        ("--data.limit=x", "data.limit"),
        ("--trainer.fast_dev_run=true", "set --data.limit to a number of images"),
        ("--trainer.limit_predict_batches=3", "set --data.limit to a number of images"),
    ],
)
def test_a_wrong_limit_is_refused_and_the_trainers_own_limits_name_it(
    tiny_model: Path, shards: Path, tmp_path: Path, flag: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invert(tiny_model, shards, tmp_path / "out", flag) == 2
    assert text in capsys.readouterr().err
