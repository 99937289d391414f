"""`nti-batch edit` through the front door: what each picture must be, what fails and why, what a second run does."""

import csv
import dataclasses
import io
import json
import os
import re
import signal
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from helpers.edits import difference, edit, edited_images, listed, rows
from helpers.jobs import arguments, held_job, run_console, wait_for
from helpers.pie_folder import EDITS, write_pie_folder
from helpers.tiny import captioned, png, write_shard
from PIL import Image
from torch import Tensor

from nti_batch import EditSettings, edit_image, read_inversions
from nti_batch.cli import main
from nti_batch.data.images import decode_image
from nti_batch.editing.columns import SETTINGS_COLUMNS
from nti_batch.editing.pie_bench import CATEGORIES
from nti_batch.editing.pie_bench import write_shard as write_pie_shard
from nti_batch.editing.requests import read_requests
from nti_batch.json_object import Json
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.scores.metrics import psnr

PROMPT = "a small red circle, number {}"
"""Of `captioned`."""


def pixels(payload: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(payload)))).permute(2, 0, 1)


@pytest.fixture(scope="module")
def inverted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inversions of the shards a (000 to 004, and one that has failed) and b (000)."""
    folder = tmp_path_factory.mktemp("inverted")
    write_shard(folder / "a.tar", captioned(5) | {"html.png": b"<html>", "html.txt": b"a page"})
    write_shard(folder / "b.tar", captioned(1))
    assert main(arguments(tiny_model, folder / "[ab].tar", folder / "out")) == 3
    return folder / "out"


def test_no_edit_rebuilds_every_inversion_to_its_recorded_psnr(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(edit(inverted, out)) == 0
    assert "6 done, 0 failed, 0 missing of 6 edits" in capsys.readouterr().out
    found = edited_images(out)
    recorded = {(s.shard, s.key, "reconstruction"): s.metadata["psnr"] for s in read_inversions(inverted)}
    assert found.keys() == recorded.keys()
    for name, picture in found.items():
        original = decode_image(png(int(name[1])), 16, 16)[None] / 255
        # the PNG is rounded to whole levels
        assert psnr(picture[None] / 255, original).item() == pytest.approx(recorded[name], abs=0.02)
    with Image.open(out / "preview.png") as preview:
        assert preview.size[0] > 4 * 128


def test_edits_in_one_batch_are_those_made_alone_and_the_sources_own_prompt_changes_nothing(
    inverted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = StableDiffusion.predict, set[int]()

    def counted(networks: StableDiffusion, latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.add(len(latents))
        return real(networks, latents, *rest)

    monkeypatch.setattr(StableDiffusion, "predict", counted)
    own, other, more = PROMPT.format(1), "a small blue circle, number 1", "a small red square with a hat, number 1"
    flag = listed(
        tmp_path / "edits.jsonl",
        {"key": "001", "name": "rebuilt"},
        {"key": "001", "name": "own", "prompt": own, "edit_prompt": own},
        {"key": "001", "name": "blue", "edit_prompt": other, "kind": "replace", "cross_replace_steps": 0.8},
        {
            "key": "001",
            "name": "hat",
            "edit_prompt": more,
            "equalizer": {"hat": 3},
            "cross_replace_steps": {"default_": 0.4, "red": 1},
        },
        {"key": "002", "name": "blend", "edit_prompt": "a green circle", "blend_words": ["circle", "green circle"]},
        {"key": "000", "name": "rebuilt", "shard": "b"},
    )
    for rows_of_call in (2, 3, 7):
        calls.clear()
        job = edit(inverted, tmp_path / str(rows_of_call), flag, f"--model.batch_size={rows_of_call}")
        monkeypatch.setattr("nti_batch.commands.edit.draw_preview", lambda *_: None)
        assert main(job) == 0
        assert max(calls) == rows_of_call
    alone, some, together = (edited_images(tmp_path / str(n)) for n in (2, 3, 7))
    assert len(alone) == 6
    for name, picture in alone.items():
        assert difference(picture, together[name]) <= 1
        assert difference(picture, some[name]) <= 1
    rebuilt = alone["a", "001", "rebuilt"]
    assert difference(alone["a", "001", "own"], rebuilt) <= 1
    assert difference(alone["a", "001", "blue"], rebuilt) > 1
    assert difference(alone["a", "001", "hat"], rebuilt) > 1


def test_one_picture_from_the_shell_and_from_python_is_the_jobs(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prompt = "a small blue circle, number 3"
    shares: dict[str, Any] = {"cross_replace_steps": 0.7, "self_replace_steps": 0.1}
    flag = listed(tmp_path / "e.jsonl", {"key": "003", "edit_prompt": prompt, "kind": "replace", **shares})
    assert main(edit(inverted, tmp_path / "out", flag)) == 0
    capsys.readouterr()
    file = tmp_path / "x.png"
    command = ["edit", "--inversions", str(inverted), "--key", "003", "--prompt", prompt, "--output", str(file)]
    assert main([*command, "--kind=replace", "--cross_replace_steps=0.7", "--self_replace_steps=0.1"]) == 0
    assert f"{file}: " in capsys.readouterr().out
    (stored,) = read_inversions(inverted, [("a", "003")])
    by_hand = edit_image(stored, prompt, EditSettings(kind="replace", **shares))
    (job,) = edited_images(tmp_path / "out").values()
    assert difference(pixels(file.read_bytes()), job) <= 1
    assert difference(torch.from_numpy(np.array(by_hand)).permute(2, 0, 1), job) <= 1


def test_the_unedited_part_is_what_lies_outside_the_mask_of_the_input(inverted: Path, tmp_path: Path):
    """The left half of the picture may be edited; the right half is compared."""
    left: list[Json] = [number for row in range(16) for number in (16 * row, 8)]
    asked = {"key": "002", "edit_prompt": "a blue circle"}
    flag = listed(
        tmp_path / "e.jsonl",
        {**asked, "name": "masked", "mask": left, "mask_size": [16, 16]},
        {**asked, "name": "bare"},
        {**asked, "name": "all", "mask": [0, 256], "mask_size": [16, 16]},
    )
    assert main(edit(inverted, tmp_path / "out", flag)) == 0
    found, made = rows(tmp_path / "out"), edited_images(tmp_path / "out")
    right = made["a", "002", "masked"][:, :, 8:] / 255 - decode_image(png(2), 16, 16)[:, :, 8:] / 255
    masked = found["a", "002", "masked"]
    assert masked.mse_unedited == pytest.approx(right.square().mean().item(), rel=1e-4)
    assert masked.psnr_unedited == pytest.approx(-10 * right.square().mean().log10().item(), abs=1e-3)
    assert masked.ssim_unedited is not None
    assert masked.ssim_unedited < 1
    for name in ("bare", "all"):
        row = found["a", "002", name]
        assert (row.psnr_unedited, row.ssim_unedited, row.mse_unedited) == (None, None, None)


def test_an_input_that_is_gone_leaves_scores_out(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "inversions")) == 0
    shard.unlink()
    flag = listed(tmp_path / "e.jsonl", {"shard": "s", "key": "000", "mask": [0, 9], "mask_size": [16, 16]})
    assert main(edit(tmp_path / "inversions", tmp_path / "out", flag)) == 0
    (row,) = rows(tmp_path / "out").values()
    assert row.status == "done"
    assert row.psnr_unedited is None
    assert "1 of 1 inputs cannot be read, so their edits get no scores" in caplog.text


def test_what_does_not_fit_an_image_fails_in_words_and_its_neighbours_are_made(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words: dict[str, tuple[dict[str, Json], str]] = {
        "no key": ({"key": "nobody", "edit_prompt": "x"}, "has no inversion of the key 'nobody' in shard 'a'"),
        "failed": ({"key": "html", "edit_prompt": "x"}, "its inversion has failed at stage 'image'"),
        "prompt": (
            {"key": "000", "prompt": "a dog", "edit_prompt": "a cat"},
            "the edit is for the prompt 'a dog', but the image was inverted with 'a small red circle, number 0'",
        ),
        "word": (
            {"key": "000", "edit_prompt": "a blue circle", "equalizer": {"square": 2}},
            "'square' is not in what the text encoder reads of the prompt 'a blue circle'",
        ),
        "blend": (
            {"key": "000", "edit_prompt": "a blue circle", "blend_words": ["dog", "circle"]},
            "'dog' is not in what the text encoder reads of the prompt 'a small red circle, number 0'",
        ),
        "counts": (
            {"key": "000", "edit_prompt": "a blue circle", "kind": "replace"},
            "to replace words, an edit needs as many as its source",
        ),
        "mask": ({"key": "000", "mask": [300, 9], "mask_size": [16, 16]}, "300"),
    }
    edits = [{**asked, "name": name} for name, (asked, _) in words.items()]
    flag = listed(tmp_path / "e.jsonl", *edits, {"key": "000", "name": "good", "edit_prompt": "a blue circle"})
    job = edit(inverted, tmp_path / "out", flag)
    assert main(job) == 3
    printed = capsys.readouterr().out
    assert "1 done, 7 failed, 0 missing of 8 edits" in printed
    assert "5 failed at stage 'edit'" in printed
    assert "2 failed at stage 'inversion'" in printed
    found = {name: row for (_, _, name), row in rows(tmp_path / "out").items()}
    assert {name for name, row in found.items() if row.status == "done"} == {"good"}
    for name, (_, said) in words.items():
        assert said in found[name].error
    assert main(job) == 3, "a second run has nothing to do, and still says what failed"
    assert {name: row for (_, _, name), row in rows(tmp_path / "out").items()} == found
    assert main(["status", str(tmp_path / "out"), "--exit_code"]) == 3


def test_a_picture_that_is_not_finite_fails_alone(inverted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, calls = StableDiffusion.decode_latents, iter(range(100))
    monkeypatch.setattr(
        StableDiffusion, "decode_latents", lambda self, z: real(self, z) * (float("nan") if next(calls) == 2 else 1)
    )
    prompts = ["a blue circle", "a green circle", "a circle"]
    flag = listed(tmp_path / "e.jsonl", *({"key": "000", "edit_prompt": prompt} for prompt in prompts))
    assert main(edit(inverted, tmp_path / "out", flag)) == 3
    found = {name: row for (_, _, name), row in rows(tmp_path / "out").items()}
    assert {name: row.status for name, row in found.items()} == {"0": "done", "1": "failed", "2": "done"}
    assert found["1"].error == "the edited image is not finite"


def test_what_has_failed_is_tried_again_when_asked_for(tiny_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "inversions")) == 0
    write_shard(tmp_path / "t.tar", captioned(1, first=7))
    flag = listed(tmp_path / "e.jsonl", *({"shard": "s", "key": key, "name": "x"} for key in ("000", "001")))
    job = edit(tmp_path / "inversions", tmp_path / "out", flag)
    assert main(job) == 3
    before = rows(tmp_path / "out")
    write_shard(shard, captioned(2))
    for complete in (tmp_path / "inversions" / "inversions").glob("*.complete"):
        complete.unlink()
    assert main(arguments(tiny_model, shard, tmp_path / "inversions")) == 0
    assert main(job) == 3, "nobody has asked to try again"
    assert main([*job, "--data.retry_failed=true"]) == 0
    after = rows(tmp_path / "out")
    assert after["s", "001", "x"].status == "done"
    assert after["s", "000", "x"] == before["s", "000", "x"]


def test_edits_that_are_asked_for_later_are_made_then_and_those_before_stay(
    inverted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = [{"key": key, "edit_prompt": "a blue circle"} for key in ("000", "001")]
    job = edit(inverted, tmp_path / "out", listed(tmp_path / "e.jsonl", *first))
    assert main(job) == 0
    before = rows(tmp_path / "out")
    listed(tmp_path / "e.jsonl", *first, *({"key": key, "edit_prompt": "a cyan star"} for key in ("001", "004")))
    assert main(["status", str(tmp_path / "out"), "--exit_code"]) == 75
    assert main(job) == 0
    after = rows(tmp_path / "out")
    assert after.keys() == {("a", "000", "0"), ("a", "001", "0"), ("a", "001", "1"), ("a", "004", "0")}
    assert before.items() <= after.items()
    monkeypatch.setattr(StableDiffusion, "decode_latents", lambda *_: pytest.fail("something was made again"))
    assert main(job) == 0


def test_a_name_that_is_given_to_another_edit_is_refused(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = {"key": "000", "name": "x", "edit_prompt": "a blue circle"}
    job = edit(inverted, tmp_path / "out", listed(tmp_path / "e.jsonl", asked))
    assert main(job) == 0
    listed(tmp_path / "e.jsonl", {**asked, "edit_prompt": "a green circle"})
    assert main(job) == 2
    assert "edit 'x' of a/000 was made with other words, settings or another mask" in capsys.readouterr().err


def test_other_settings_on_a_run_are_refused_with_the_difference(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    job = edit(inverted, tmp_path / "out", "--data.edit_prompt=a blue circle")
    assert main(job) == 0
    assert {name for _, _, name in rows(tmp_path / "out")} == {"edit"}
    assert main([*job, "--edit.self_replace_steps=0.25", '--edit.blend_words=["circle", "circle"]']) == 2
    refusal = capsys.readouterr().err
    assert "edit.self_replace_steps: 0.6 there, 0.25 now" in refusal
    assert 'edit.blend_words: null there, ["circle", "circle"] now' in refusal
    assert main(edit(inverted, inverted)) == 2
    assert "is no run of `nti-batch edit`" in capsys.readouterr().err


def test_two_ranks_make_each_edit_once(inverted: Path, tmp_path: Path):
    job = run_console(edit(inverted, tmp_path / "out", "--trainer.devices=2", "--data.units_per_shard=3"), timeout=500)
    assert job.returncode == 0, job.stderr
    assert "6 done, 0 failed, 0 missing of 6 edits" in job.stdout
    assert len(edited_images(tmp_path / "out")) == 6


def test_a_killed_job_keeps_what_was_finished(inverted: Path, tmp_path: Path):
    edits = ({"key": f"{i % 5:03}", "edit_prompt": f"a blue circle, number {i}"} for i in range(60))
    flag = listed(tmp_path / "e.jsonl", *edits)
    job, hold = edit(inverted, tmp_path / "out", flag, "--data.units_per_shard=16"), tmp_path / "hold"
    with held_job(job, hold) as process:
        wait_for(tmp_path / "hold.0", 500)
        process.kill()
    unfinished = list((tmp_path / "out" / "edits").glob("*.tar.tmp"))
    assert unfinished
    killed = max(file.stat().st_mtime for file in unfinished)
    assert main(job) == 0
    found = rows(tmp_path / "out")
    assert len(found) == 60
    assert sum(row.finished <= killed for row in found.values()) >= 8


def test_every_setting_of_an_edit_is_a_column():
    assert list(SETTINGS_COLUMNS) == [field.name for field in dataclasses.fields(EditSettings)]


def test_csv_and_jsonl_ask_for_the_same(tmp_path: Path):
    edits: list[dict[str, Json]] = [
        {"key": "a,b", "edit_prompt": 'a "blue" circle', "prompt": "a red circle", "kind": "replace"},
        {
            "key": "a,b",
            "name": "x",
            "cross_replace_steps": 0.5,
            "self_replace_steps": [0.0, 0.5],
            "equalizer": {"blue": 2, "a b": -1},
        },
        {
            "key": "c",
            "cross_replace_steps": {"default_": 0.9, "blue": 0.25},
            "blend_words": ["red", "blue sky"],
            "blend_threshold": 0.5,
        },
        {"key": "d", "mask": [3, 4], "mask_size": [8, 16], "blend_start": 0.1},
        {"key": "e", "cross_replace_steps": [0.1, 0.5], "self_replace_steps": 0},
        {"key": "f", "cross_replace_steps": {"default_": [0.1, 0.5], "blue sky": 1}},
    ]
    cells = [
        {"key": "a,b", "edit_prompt": 'a "blue" circle', "prompt": "a red circle", "kind": "replace"},
        {
            "key": "a,b",
            "name": "x",
            "cross_replace_steps": "0.5",
            "self_replace_steps": "0;0.5",
            "equalizer": "blue=2;a b=-1",
        },
        {
            "key": "c",
            "cross_replace_steps": "default_=0.9;blue=0.25",
            "blend_words": "red;blue sky",
            "blend_threshold": "0.5",
        },
        {"key": "d", "mask": "[3, 4]", "mask_size": "[8, 16]", "blend_start": "0.1"},
        {"key": "e", "cross_replace_steps": "0.1;0.5", "self_replace_steps": "0"},
        {"key": "f", "cross_replace_steps": '{"default_": [0.1, 0.5], "blue sky": 1}'},
    ]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, edits)))
    with open(tmp_path / "e.csv", "w", newline="") as file:
        table = csv.DictWriter(file, sorted({name for row in cells for name in row}))
        table.writeheader()
        table.writerows(cells)
    defaults = EditSettings(cross_replace_steps=0.9)
    found = read_requests(tmp_path / "e.jsonl", ["s"], defaults)
    assert found == read_requests(tmp_path / "e.csv", ["s"], defaults)
    assert [request.name for request in found] == ["0", "x", "0", "0", "0", "0"]
    assert [request.settings.cross_replace_steps for request in found] == [
        0.9,
        0.5,
        {"default_": 0.9, "blue": 0.25},
        0.9,
        (0.1, 0.5),
        {"default_": (0.1, 0.5), "blue sky": 1.0},
    ]
    assert found[1].settings.equalizer == {"blue": 2.0, "a b": -1.0}
    assert found[2].settings.blend_words == ("red", "blue sky")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("key,promt\n000,\n", "e.csv:2: there is no column 'promt'"),
        ("key,prompt\n000\n", "e.csv:2: the line does not have the 2 columns of the first"),
        ("key,prompt\n000,a,b\n", "e.csv:2: the line does not have the 2 columns of the first"),
        (
            "key,self_replace_steps\n000,0.1;0.2;1\n",
            "e.csv:2: self_replace_steps is '0.1;0.2;1', allowed: a number such",
        ),
        ("key,self_replace_steps\n000,[]\n", "e.csv:2: self_replace_steps is '[]', allowed: a number such"),
        (
            "key,cross_replace_steps\n000,default_=0.1;0.5;a=1\n",
            "e.csv:2: cross_replace_steps is 'default_=0.1;0.5;a=1'",
        ),
        ("key,equalizer\n000,blue\n", "e.csv:2: equalizer is 'blue', allowed: words with a number each"),
    ],
)
def test_a_wrong_line_of_a_csv_is_refused_by_its_place(tmp_path: Path, text: str, said: str):
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        read_requests(tmp_path / "e.csv", ["s"], EditSettings())


def test_a_line_of_jsonl_ends_where_the_file_says_so(tmp_path: Path):
    """And not at what Unicode calls a line separator."""
    (tmp_path / "e.jsonl").write_text('{"key": "a", "edit_prompt": "one\u2028two"}\n\n{"key": "b"}')
    found = read_requests(tmp_path / "e.jsonl", ["s"], EditSettings())
    assert [request.edit_prompt for request in found] == ["one\u2028two", None]


WRONG = {
    '{"key": "000"': "e.jsonl:2: this is no JSON",
    "[1]": "e.jsonl:2: this is no JSON object: [1]",
    '{"edit_prompt": "x"}': "e.jsonl:2: the key of the image is missing",
    '{"key": "000", "shard": "c"}': "e.jsonl:2: shard 'c' is unknown; the inversions are of 2 shards, such as 'a'",
    '{"key": "000", "shard": "a", "promt": "x"}': "e.jsonl:2: there is no column 'promt', allowed: shard, key, name",
    '{"key": "000", "shard": "a", "cross_replace_steps": "much"}': "e.jsonl:2: "
    "cross_replace_steps is 'much', allowed: a number",
    '{"key": "000", "shard": "a", "cross_replace_steps": 2}': "e.jsonl:2: cross_replace_steps is 2.0, allowed: 0 to 1",
    '{"key": "000", "shard": "a", "kind": "swap"}': "e.jsonl:2: kind is 'swap', allowed: 'replace' or 'refine'",
    '{"key": "000", "shard": "a", "blend_words": ["red"]}': "e.jsonl:2: blend_words is ['red'], allowed: a word",
    '{"key": "000", "shard": "a", "mask": [0, 1]}': "e.jsonl:2: mask and mask_size belong together",
    '{"key": "000", "shard": "a", "name": "0"}': "e.jsonl:2: edit '0' of '000' is there already",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_is_refused_by_its_place_before_a_model_is_loaded(
    inverted: Path,
    tmp_path: Path,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(StableDiffusion, "load", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "e.jsonl").write_text('{"shard": "a", "key": "000"}\n' + line)
    assert main(edit(inverted, tmp_path / "out", f"--data.edits={tmp_path}/e.jsonl")) == 2
    captured = capsys.readouterr()
    assert WRONG[line] in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.edits=/no/such.csv"], "edits '/no/such.csv' cannot be read: [Errno 2]"),
        (["--data.edits=x.csv", "--data.edit_prompt=y"], "data.edits and data.edit_prompt are both given"),
        (["--data.inversions=/no/such"], "'/no/such' is no run of `nti-batch invert`"),
        (["--model.batch_size=1"], "model.batch_size is 1, allowed: at least 2"),
        (["--model.name=/no/such/model"], "model '/no/such/model' is no folder"),
        (["--edit.cross_replace_steps=2"], "cross_replace_steps is 2"),
        (["--data.part=2/2"], "data.part is '2/2'"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(
    inverted: Path, tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main([*edit(inverted, tmp_path / "out"), *flags]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--key=nobody"], "has no key 'nobody'; it has 000, 001, 002, 003, 004"),
        (["--key=000"], "has the key '000' in the shards a, b: choose one with --shard"),
        (["--key=html"], "the inversion of 'html' has failed at stage 'image'"),
        (["--key=001", "--shard=b"], "shard 'b' of"),
        (["--key=001", "--prompt=a dog", "--kind=replace"], "to replace words"),
        (["--key=001", "--cross_replace_steps=x"], "cross_replace_steps is 'x', allowed: a number"),
    ],
)
def test_one_picture_that_cannot_be_is_refused_in_one_line(
    inverted: Path, tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["edit", f"--inversions={inverted}", f"--output={tmp_path}/x.png", *flags]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_a_signal_ends_the_job_within_one_call_of_the_unet_and_the_next_job_goes_on(
    inverted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    predict, calls = StableDiffusion.predict, 0

    def interrupted(self: StableDiffusion, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, latents, timesteps, embeddings)

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusion, "predict", interrupted)
        assert main(edit(inverted, tmp_path / "out")) == 75
    assert calls == 3
    assert rows(tmp_path / "out") == {}
    assert main(edit(inverted, tmp_path / "out")) == 0
    assert len(rows(tmp_path / "out")) == 6


def test_a_pie_bench_folder_is_edited_and_scored(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_pie_folder(tmp_path / "bench")
    assert write_pie_shard(folder, tmp_path / "bench.tar") == 3
    assert main(arguments(tiny_model, tmp_path / "bench.tar", tmp_path / "inversions")) == 0
    assert main(edit(tmp_path / "inversions", tmp_path / "out", f"--data.edits={folder}")) == 0
    found = rows(tmp_path / "out")
    assert {name for _, _, name in found} == {f"{category}-{key}" for key, (category, *_) in EDITS.items()}
    assert all(row.psnr_unedited is not None and row.edit_prompt for row in found.values())
    capsys.readouterr()
    assert main(["score", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    theirs, ours = (table.splitlines() for table in printed.split("\n\n")[:2])
    assert [len(table) for table in (theirs, ours)] == [2 + 1 + len(CATEGORIES)] * 2
    psnr = fmean(row.psnr_unedited or 0.0 for row in found.values())
    mse = fmean(row.mse_unedited or 0.0 for row in found.values())
    assert ours[2].startswith(f"| all | 3 | {psnr:.2f} | {1e4 * mse:.2f} | ")
    assert printed.splitlines()[-1].startswith("CLIP score, structure distance and LPIPS are left out")
    assert main(["score", str(tmp_path / "out"), "--json"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    assert [edit["scores"]["unedited"]["psnr"] for edit in as_json] == pytest.approx(
        [found[edit["shard"], edit["key"], edit["name"]].psnr_unedited for edit in as_json]
    )


def test_a_run_without_masks_has_no_scores(inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(edit(inverted, tmp_path / "out")) == 0
    capsys.readouterr()
    assert main(["score", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("no edit has a mask")
    assert main(["score", str(inverted)]) == 2


def test_the_shipped_config_is_complete(capsys: pytest.CaptureFixture[str]):
    configs = Path(__file__).parents[2] / "configs"
    with pytest.raises(SystemExit) as end:
        main(["edit", f"--config={configs / 'edit-demo.yaml'}", "--print_config"])
    assert end.value.code == 0
    assert "cross_replace_steps: 0.4" in capsys.readouterr().out
    assert len(read_requests(configs / "edit-demo.jsonl", ["photographs-000000"], EditSettings())) > 1


def test_the_help_of_the_job_names_every_setting_of_an_edit(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["edit", "--help"])
    printed = capsys.readouterr().out
    for field in dataclasses.fields(EditSettings):
        assert f"--edit.{field.name}" in printed
