"""`nti-batch export --format parquet`: a line for each image or edit."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.format_runs import EDIT_SETTINGS, edited
from helpers.inversions import KEYS, ORIGIN, SETTINGS, UNIT, inversion
from helpers.jobs import arguments, expect_one_sentence, rows
from helpers.runs import create_run
from helpers.tiny import write_mixed_shard
from safetensors.torch import load

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.output import table
from nti_batch.output.edits import EDIT
from nti_batch.output.inversions import InversionRun
from nti_batch.output.run_folder import OutputRun
from nti_batch.records import Failure
from nti_batch.settings import flatten

FAILURE = Failure(UNIT, "bad", "image", "it is HTML")


@pytest.fixture
def run(tmp_path: Path) -> InversionRun:
    """Six images and a failure, and a second part in which the first image was computed again."""
    run = create_run(tmp_path / "out", SETTINGS, ["shard[0].tar"])
    for keys in (KEYS, KEYS[:1]):
        run.claim(UNIT)
        part = run.new_part(UNIT, ORIGIN)
        for key in keys:
            part.add(inversion(key))
        if keys is KEYS:
            part.add_failure(FAILURE)
            part.add_failure(replace(FAILURE, key="", error="the tar is cut"))
        part.commit()
        run.release(UNIT)
    return run


def export(out: Path, file: Path, *more: str) -> int:
    return main(["export", str(out), "--format", "parquet", "--output", str(file), *more])


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Lines of a table by their keys; no key has two."""
    lines = pq.read_table(file).to_pylist()
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["key"]: line for line in lines}


def test_the_table_of_a_job_has_its_manifests_captions_and_settings(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(arguments(tiny_model, write_mixed_shard(tmp_path / "s.tar"), out)) == 3
    capsys.readouterr()
    assert export(out, tmp_path / "tables" / "rows.parquet") == 0
    assert "rows.parquet: 4 rows written\n" in capsys.readouterr().out
    lines, known = read(tmp_path / "tables" / "rows.parquet"), rows(out)
    assert lines.keys() == known.keys()
    prompts = {stored.key: stored.prompt for stored in read_inversions(out)}
    for key, row in known.items():
        line = lines[key]
        values = {**row.to_json(), "finished": pytest.approx(row.finished, abs=1e-5)}
        assert {**{name: line[name] for name in values}, "finished": line["finished"].timestamp()} == values
        assert line["caption"] == prompts.get(key)
        assert (line["model.num_steps"], line["model.name"]) == (3, str(tiny_model))
    assert {line["status"] for line in lines.values()} == {"done", "failed"}


def test_a_line_says_where_the_tensors_lie_and_names_the_record_that_counts(run: InversionRun, tmp_path: Path):
    assert export(run.out, tmp_path) == 0
    lines = read(tmp_path / "inversions.parquet")
    assert lines.keys() == {*KEYS, "bad"}  # the row about the shard is about no image
    stored = {s.key: s for s in read_inversions(run.out)}
    for key in KEYS:
        line = lines[key]
        content = (run.out / line["part"]).read_bytes()[line["offset"] : line["offset"] + line["bytes"]]
        assert load(content)["noise_latents"].equal(stored[key].noise_latents)
        assert line["caption"] == f"a picture of {key}"
    assert lines["000"]["part"].endswith(".00001.tar") and lines["000"]["generation"] == 1
    assert lines["a/b"]["part"].endswith(".00000.tar")
    assert (lines["bad"]["stage"], lines["bad"]["error"], lines["bad"]["part"]) == ("image", "it is HTML", None)
    assert lines["a/b"]["id"] == "shard%5B0%5D/a%2Fb"


def test_settings_and_origin_are_columns_of_their_types(run: InversionRun, tmp_path: Path):
    export(run.out, tmp_path)
    lines = read(tmp_path / "inversions.parquet")
    settings = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in flatten(SETTINGS.to_json()).items()}
    for line in lines.values():
        assert {name: line[name] for name in settings} == settings
        assert {name: line[f"origin.{name}"] for name in asdict(ORIGIN)} == asdict(ORIGIN)
    schema = pq.read_schema(tmp_path / "inversions.parquet")
    assert [str(schema.field(name).type) for name in ("psnr", "forwards", "finished", "model.revision")] == [
        "double",
        "int64",
        "timestamp[us, tz=UTC]",
        "string",
    ]
    assert lines["000"]["finished"] <= datetime.now(UTC)


def test_an_edit_is_a_line_with_its_own_scores(tmp_path: Path):
    run = OutputRun.create(EDIT, tmp_path / "edits", EDIT_SETTINGS, {UNIT.shard: "shard[0].tar"})
    part = run.new_part(UNIT, ORIGIN)
    part.add(edited("cup"))
    part.add(replace(edited("cup"), name="red", psnr_unedited=None))
    part.add_failure(Failure(UNIT, "cup", "edit", "a word is missing", "bad"))
    part.commit()
    assert export(run.out, tmp_path) == 0
    lines = pq.read_table(tmp_path / "edits.parquet").to_pylist()
    assert [(line["name"], line["psnr_unedited"], line["error"]) for line in lines] == [
        ("blue", 30.0, ""),
        ("red", None, ""),
        ("bad", None, "a word is missing"),
    ]
    assert lines[0]["id"] == "shard%5B0%5D/cup+blue" and lines[0]["edit_prompt"] == "a blue cup"
    content = (run.out / lines[1]["part"]).read_bytes()[lines[1]["offset"] :]
    assert content.startswith(b"\x89PNG")
    assert lines[0]["edit.blend_words"] == '["cup", "cup"]'


def test_shards_and_keys_choose_lines(run: InversionRun, tmp_path: Path):
    assert export(run.out, tmp_path / "some.parquet", "--key", "000", "bad") == 0
    assert read(tmp_path / "some.parquet").keys() == {"000", "bad"}
    assert export(run.out, tmp_path / "none.parquet", "--key", "other") == 2


@pytest.mark.parametrize("suffix", [".jsonl", ".tar"])
def test_a_damaged_file_is_named_and_the_rest_is_in_the_table(
    run: InversionRun, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
):
    (run.folder / f"{UNIT.name}.00000{suffix}").write_bytes(b"damaged")
    assert export(run.out, tmp_path / "rows.parquet") == 1
    expect_one_sentence(f"{UNIT.name}.00000{suffix} is damaged", "the table lacks what it holds", capsys=capsys)
    lines = read(tmp_path / "rows.parquet")
    assert lines["000"]["caption"] == "a picture of 000"
    if suffix == ".tar":
        assert lines.keys() == {*KEYS, "bad"}
        assert lines["a/b"]["psnr"] == 30.25 and lines["a/b"]["part"] is None
    else:
        assert lines.keys() == {"000"}


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: None], ids=["pipe", "folder", "nothing"])
@pytest.mark.parametrize("format", ["parquet", "hub"])
def test_what_is_no_file_in_the_place_of_a_tar_is_named(
    run: InversionRun, tmp_path: Path, make: Callable[[Path], None], format: str, capsys: pytest.CaptureFixture[str]
):
    tar = run.folder / f"{UNIT.name}.00000.tar"
    tar.unlink()
    make(tar)
    assert main(["export", str(run.out), "--format", format, "--output", str(tmp_path / "x")]) == 1
    assert str(tar) in capsys.readouterr().err
    assert read(tmp_path / "x" / "inversions.parquet")["a/b"]["part"] is None


def test_a_changed_caption_is_not_believed(run: InversionRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tar = run.folder / f"{UNIT.name}.00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"a picture of a/b", b"a picture of a/x"))
    assert export(run.out, tmp_path / "rows.parquet") == 1
    assert "have changed" in capsys.readouterr().err
    lines = read(tmp_path / "rows.parquet")
    assert lines["a/b"]["caption"] is None and lines["../../x"]["caption"] == "a picture of ../../x"


def test_lines_are_written_in_groups_that_fit_the_memory(
    run: InversionRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    export(run.out, tmp_path / "whole.parquet")
    monkeypatch.setattr(table, "ROW_GROUP", 3)
    export(run.out, tmp_path / "groups.parquet")
    with pq.ParquetFile(tmp_path / "groups.parquet") as file:
        assert file.num_row_groups == 3
    assert pq.read_table(tmp_path / "whole.parquet").equals(pq.read_table(tmp_path / "groups.parquet"))


def test_a_text_that_no_file_can_hold_is_escaped(tmp_path: Path):
    run = create_run(tmp_path / "out", SETTINGS, ["shard[0].tar"])
    part = run.new_part(UNIT, ORIGIN)
    part.add_failure(replace(FAILURE, error="half a pair: \ud83d"))
    part.commit()
    assert export(run.out, tmp_path / "rows.parquet") == 0
    assert read(tmp_path / "rows.parquet")["bad"]["error"] == r"half a pair: \ud83d"


@pytest.mark.parametrize("format", ["parquet", "hub"])
def test_without_pyarrow_the_extra_is_named(
    run: InversionRun,
    tmp_path: Path,
    format: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", str(run.out), "--format", format, "--output", str(tmp_path / "x")]) == 2
    expect_one_sentence("pip install 'nti-batch[parquet]'", capsys=capsys)
    assert not (tmp_path / "x").exists()


def test_no_run_and_no_folder_are_named(run: InversionRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert export(tmp_path, tmp_path / "x.parquet") == 2
    expect_one_sentence("is no run", capsys=capsys)
    (tmp_path / "file").touch()
    assert export(run.out, tmp_path / "file" / "x.parquet") == 1
    expect_one_sentence("cannot be written", capsys=capsys)
