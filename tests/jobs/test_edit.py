"""`nti-batch edit` as users run it: the edited images, the failures with their reasons, and a second run."""

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
from helpers.edits import difference, edit, edited_images, edits_flag, rows
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
"""Captions of `captioned`."""


def decode(payload: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(payload)))).permute(2, 0, 1)


@pytest.fixture(scope="module")
def inverted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invert the shards a (000 to 004, and one that fails) and b (000)."""
    folder = tmp_path_factory.mktemp("inverted")
    write_shard(folder / "a.tar", captioned(5) | {"html.png": b"<html>", "html.txt": b"a page"})
    write_shard(folder / "b.tar", captioned(1))
    assert main(arguments(tiny_model, folder / "[ab].tar", folder / "out")) == 3
    return folder / "out"


def test_a_job_without_edits_reconstructs_every_inversion_to_its_recorded_psnr(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(edit(inverted, out)) == 0
    assert "6 done, 0 failed, 0 missing of 6 edits" in capsys.readouterr().out
    reconstructed = edited_images(out)
    recorded = {(s.shard, s.key, "reconstruction"): s.metadata["psnr"] for s in read_inversions(inverted)}
    assert reconstructed.keys() == recorded.keys()
    for name, image in reconstructed.items():
        original = decode_image(png(int(name[1])), 16, 16)[None] / 255
        # a PNG has whole levels
        assert psnr(image[None] / 255, original).item() == pytest.approx(recorded[name], abs=0.02)
    with Image.open(out / "preview.png") as preview:
        assert preview.size[0] > 4 * 128


def test_edits_do_not_depend_on_their_batch_and_the_prompt_of_the_source_changes_nothing(
    inverted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = StableDiffusion.predict, set[int]()

    def counted(networks: StableDiffusion, latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.add(len(latents))
        return real(networks, latents, *rest)

    monkeypatch.setattr(StableDiffusion, "predict", counted)
    own, other, more = PROMPT.format(1), "a small blue circle, number 1", "a small red square with a hat, number 1"
    flag = edits_flag(
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
    for name, image in alone.items():
        assert difference(image, together[name]) <= 1
        assert difference(image, some[name]) <= 1
    rebuilt = alone["a", "001", "rebuilt"]
    assert difference(alone["a", "001", "own"], rebuilt) <= 1
    assert difference(alone["a", "001", "blue"], rebuilt) > 1
    assert difference(alone["a", "001", "hat"], rebuilt) > 1


def test_one_edit_from_the_shell_and_from_python_equals_that_of_the_job(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prompt = "a small blue circle, number 3"
    shares: dict[str, Any] = {"cross_replace_steps": 0.7, "self_replace_steps": 0.1}
    flag = edits_flag(tmp_path / "e.jsonl", {"key": "003", "edit_prompt": prompt, "kind": "replace", **shares})
    assert main(edit(inverted, tmp_path / "out", flag)) == 0
    capsys.readouterr()
    file = tmp_path / "x.png"
    command = ["edit", "--inversions", str(inverted), "--key", "003", "--prompt", prompt, "--output", str(file)]
    assert main([*command, "--kind=replace", "--cross_replace_steps=0.7", "--self_replace_steps=0.1"]) == 0
    assert f"{file}: " in capsys.readouterr().out
    (stored,) = read_inversions(inverted, [("a", "003")])
    by_hand = edit_image(stored, prompt, EditSettings(kind="replace", **shares))
    (job,) = edited_images(tmp_path / "out").values()
    assert difference(decode(file.read_bytes()), job) <= 1
    assert difference(torch.from_numpy(np.array(by_hand)).permute(2, 0, 1), job) <= 1


def test_the_unedited_part_is_outside_the_mask_of_the_input(inverted: Path, tmp_path: Path):
    """The edit may change the left half; the test compares the right half."""
    left: list[Json] = [number for row in range(16) for number in (16 * row, 8)]
    request = {"key": "002", "edit_prompt": "a blue circle"}
    flag = edits_flag(
        tmp_path / "e.jsonl",
        {**request, "name": "masked", "mask": left, "mask_size": [16, 16]},
        {**request, "name": "bare"},
        {**request, "name": "all", "mask": [0, 256], "mask_size": [16, 16]},
    )
    assert main(edit(inverted, tmp_path / "out", flag)) == 0
    edits, images = rows(tmp_path / "out"), edited_images(tmp_path / "out")
    right = images["a", "002", "masked"][:, :, 8:] / 255 - decode_image(png(2), 16, 16)[:, :, 8:] / 255
    masked = edits["a", "002", "masked"]
    assert masked.mse_unedited == pytest.approx(right.square().mean().item(), rel=1e-4)
    assert masked.psnr_unedited == pytest.approx(-10 * right.square().mean().log10().item(), abs=1e-3)
    assert masked.ssim_unedited is not None
    assert masked.ssim_unedited < 1
    for name in ("bare", "all"):
        row = edits["a", "002", name]
        assert (row.psnr_unedited, row.ssim_unedited, row.mse_unedited) == (None, None, None)


def test_an_edit_without_its_input_image_has_no_scores(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "inversions")) == 0
    shard.unlink()
    flag = edits_flag(tmp_path / "e.jsonl", {"shard": "s", "key": "000", "mask": [0, 9], "mask_size": [16, 16]})
    assert main(edit(tmp_path / "inversions", tmp_path / "out", flag)) == 0
    (row,) = rows(tmp_path / "out").values()
    assert row.status == "done"
    assert row.psnr_unedited is None
    assert "1 of 1 inputs cannot be read, so their edits get no scores" in caplog.text


def test_edits_that_do_not_fit_their_image_fail_with_a_reason_and_the_others_are_made(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    invalid: dict[str, tuple[dict[str, Json], str]] = {
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
    edits = [{**request, "name": name} for name, (request, _) in invalid.items()]
    flag = edits_flag(tmp_path / "e.jsonl", *edits, {"key": "000", "name": "good", "edit_prompt": "a blue circle"})
    job = edit(inverted, tmp_path / "out", flag)
    assert main(job) == 3
    printed = capsys.readouterr().out
    assert "1 done, 7 failed, 0 missing of 8 edits" in printed
    assert "5 failed at stage 'edit'" in printed
    assert "2 failed at stage 'inversion'" in printed
    by_name = {name: row for (_, _, name), row in rows(tmp_path / "out").items()}
    assert {name for name, row in by_name.items() if row.status == "done"} == {"good"}
    for name, (_, reason) in invalid.items():
        assert reason in by_name[name].error
    assert main(job) == 3, "a second run has no work, but reports the failures"
    assert {name: row for (_, _, name), row in rows(tmp_path / "out").items()} == by_name
    assert main(["status", str(tmp_path / "out"), "--exit_code"]) == 3


def test_an_edited_image_that_is_not_finite_fails_alone(
    inverted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = StableDiffusion.decode_latents, iter(range(100))
    monkeypatch.setattr(
        StableDiffusion, "decode_latents", lambda self, z: real(self, z) * (float("nan") if next(calls) == 2 else 1)
    )
    prompts = ["a blue circle", "a green circle", "a circle"]
    flag = edits_flag(tmp_path / "e.jsonl", *({"key": "000", "edit_prompt": prompt} for prompt in prompts))
    assert main(edit(inverted, tmp_path / "out", flag)) == 3
    by_name = {name: row for (_, _, name), row in rows(tmp_path / "out").items()}
    assert {name: row.status for name, row in by_name.items()} == {"0": "done", "1": "failed", "2": "done"}
    assert by_name["1"].error == "the edited image is not finite"


def test_retry_failed_repeats_failed_edits(tiny_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "inversions")) == 0
    write_shard(tmp_path / "t.tar", captioned(1, first=7))
    flag = edits_flag(tmp_path / "e.jsonl", *({"shard": "s", "key": key, "name": "x"} for key in ("000", "001")))
    job = edit(tmp_path / "inversions", tmp_path / "out", flag)
    assert main(job) == 3
    before = rows(tmp_path / "out")
    write_shard(shard, captioned(2))
    for complete in (tmp_path / "inversions" / "inversions").glob("*.complete"):
        complete.unlink()
    assert main(arguments(tiny_model, shard, tmp_path / "inversions")) == 0
    assert main(job) == 3, "a retry needs the flag"
    assert main([*job, "--data.retry_failed=true"]) == 0
    after = rows(tmp_path / "out")
    assert after["s", "001", "x"].status == "done"
    assert after["s", "000", "x"] == before["s", "000", "x"]


def test_edits_added_to_the_list_are_made_and_the_earlier_ones_stay(
    inverted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = [{"key": key, "edit_prompt": "a blue circle"} for key in ("000", "001")]
    job = edit(inverted, tmp_path / "out", edits_flag(tmp_path / "e.jsonl", *first))
    assert main(job) == 0
    before = rows(tmp_path / "out")
    edits_flag(tmp_path / "e.jsonl", *first, *({"key": key, "edit_prompt": "a cyan star"} for key in ("001", "004")))
    assert main(["status", str(tmp_path / "out"), "--exit_code"]) == 75
    assert main(job) == 0
    after = rows(tmp_path / "out")
    assert after.keys() == {("a", "000", "0"), ("a", "001", "0"), ("a", "001", "1"), ("a", "004", "0")}
    assert before.items() <= after.items()
    monkeypatch.setattr(StableDiffusion, "decode_latents", lambda *_: pytest.fail("an edit was repeated"))
    assert main(job) == 0


def test_a_name_that_now_stands_for_another_edit_is_refused(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    request = {"key": "000", "name": "x", "edit_prompt": "a blue circle"}
    job = edit(inverted, tmp_path / "out", edits_flag(tmp_path / "e.jsonl", request))
    assert main(job) == 0
    edits_flag(tmp_path / "e.jsonl", {**request, "edit_prompt": "a green circle"})
    assert main(job) == 2
    assert "edit 'x' of a/000 was made with other words, settings or another mask" in capsys.readouterr().err


def test_a_run_of_edits_refuses_other_settings_and_prints_the_difference(
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


def test_a_killed_job_keeps_its_finished_edits(inverted: Path, tmp_path: Path):
    edits = ({"key": f"{i % 5:03}", "edit_prompt": f"a blue circle, number {i}"} for i in range(60))
    flag = edits_flag(tmp_path / "e.jsonl", *edits)
    job, hold = edit(inverted, tmp_path / "out", flag, "--data.units_per_shard=16"), tmp_path / "hold"
    with held_job(job, hold) as process:
        wait_for(tmp_path / "hold.0", 500)
        process.kill()
    unfinished = list((tmp_path / "out" / "edits").glob("*.tar.tmp"))
    assert unfinished
    killed = max(file.stat().st_mtime for file in unfinished)
    assert main(job) == 0
    edited = rows(tmp_path / "out")
    assert len(edited) == 60
    assert sum(row.finished <= killed for row in edited.values()) >= 8


def test_every_setting_of_an_edit_is_a_column_of_its_list():
    assert list(SETTINGS_COLUMNS) == [field.name for field in dataclasses.fields(EditSettings)]


def test_csv_and_jsonl_give_equal_requests(tmp_path: Path):
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
    requests = read_requests(tmp_path / "e.jsonl", ["s"], defaults)
    assert requests == read_requests(tmp_path / "e.csv", ["s"], defaults)
    assert [request.name for request in requests] == ["0", "x", "0", "0", "0", "0"]
    assert [request.settings.cross_replace_steps for request in requests] == [
        0.9,
        0.5,
        {"default_": 0.9, "blue": 0.25},
        0.9,
        (0.1, 0.5),
        {"default_": (0.1, 0.5), "blue sky": 1.0},
    ]
    assert requests[1].settings.equalizer == {"blue": 2.0, "a b": -1.0}
    assert requests[2].settings.blend_words == ("red", "blue sky")


@pytest.mark.parametrize(
    ("text", "reason"),
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
def test_an_invalid_line_of_a_csv_is_refused_with_its_number(tmp_path: Path, text: str, reason: str):
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_requests(tmp_path / "e.csv", ["s"], EditSettings())


def test_a_unicode_line_separator_does_not_end_a_line_of_jsonl(tmp_path: Path):
    (tmp_path / "e.jsonl").write_text('{"key": "a", "edit_prompt": "one\u2028two"}\n\n{"key": "b"}')
    requests = read_requests(tmp_path / "e.jsonl", ["s"], EditSettings())
    assert [request.edit_prompt for request in requests] == ["one\u2028two", None]


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
def test_an_invalid_line_of_jsonl_is_refused_with_its_number_before_a_model_is_loaded(
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
    ("flags", "reason"),
    [
        (["--data.edits=/no/such.csv"], "edits '/no/such.csv' cannot be read: [Errno 2]"),
        (["--data.edits=x.csv", "--data.edit_prompt=y"], "data.edits and data.edit_prompt are both given"),
        (["--data.inversions=/no/such"], "'/no/such' is no run of `nti-batch invert`"),
        (["--model.batch_size=1"], "model.batch_size is 1, allowed: at least 2"),
        (["--model.name=/no/such/model"], "model '/no/such/model' is not a folder"),
        (["--edit.cross_replace_steps=2"], "cross_replace_steps is 2"),
        (["--data.part=2/2"], "data.part is '2/2'"),
    ],
)
def test_an_invalid_setting_is_refused_in_one_line(
    inverted: Path, tmp_path: Path, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
):
    assert main([*edit(inverted, tmp_path / "out"), *flags]) == 2
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--key=nobody"], "has no key 'nobody'; it has 000, 001, 002, 003, 004"),
        (["--key=000"], "has the key '000' in the shards a, b: choose one with --shard"),
        (["--key=html"], "the inversion of 'html' has failed at stage 'image'"),
        (["--key=001", "--shard=b"], "shard 'b' of"),
        (["--key=001", "--prompt=a dog", "--kind=replace"], "to replace words"),
        (["--key=001", "--cross_replace_steps=x"], "cross_replace_steps is 'x', allowed: a number"),
    ],
)
def test_an_invalid_single_edit_is_refused_in_one_line(
    inverted: Path, tmp_path: Path, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["edit", f"--inversions={inverted}", f"--output={tmp_path}/x.png", *flags]) == 2
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1


def test_a_signal_ends_the_job_before_the_next_unet_call_and_a_second_job_resumes(
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
    edited = rows(tmp_path / "out")
    assert {name for _, _, name in edited} == {f"{category}-{key}" for key, (category, *_) in EDITS.items()}
    assert all(row.psnr_unedited is not None and row.edit_prompt for row in edited.values())
    capsys.readouterr()
    assert main(["score", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    pie_bench, unedited = (table.splitlines() for table in printed.split("\n\n")[:2])
    assert [len(table) for table in (pie_bench, unedited)] == [2 + 1 + len(CATEGORIES)] * 2
    psnr = fmean(row.psnr_unedited or 0.0 for row in edited.values())
    mse = fmean(row.mse_unedited or 0.0 for row in edited.values())
    assert unedited[2].startswith(f"| all | 3 | {psnr:.2f} | {1e4 * mse:.2f} | ")
    assert printed.splitlines()[-1].startswith("CLIP score, structure distance and LPIPS are left out")
    assert main(["score", str(tmp_path / "out"), "--json"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    assert [edit["scores"]["unedited"]["psnr"] for edit in as_json] == pytest.approx(
        [edited[edit["shard"], edit["key"], edit["name"]].psnr_unedited for edit in as_json]
    )


def test_a_run_without_masks_has_no_scores(inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(edit(inverted, tmp_path / "out")) == 0
    capsys.readouterr()
    assert main(["score", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("no edit has a mask")
    assert main(["score", str(inverted)]) == 2


def test_the_shipped_config_sets_the_job(capsys: pytest.CaptureFixture[str]):
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
