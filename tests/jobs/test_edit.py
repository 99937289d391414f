"""`nti-batch edit` as users run it: the edited images and their scores."""

import dataclasses
import io
import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from helpers.edits import difference, edit, edited_images, edits_flag, rows
from helpers.jobs import arguments
from helpers.pie_folder import EDITS, write_pie_folder
from helpers.tiny import captioned, png, write_shard
from PIL import Image

from nti_batch import EditSettings, edit_image, read_inversions
from nti_batch.cli import main
from nti_batch.data.images import decode_image
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


def test_a_prompt_of_which_the_text_encoder_reads_only_the_beginning_is_in_the_row_and_counted(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, request = tmp_path / "out", {"shard": "a", "key": "000"}
    long, short = ({**request, "name": name, "edit_prompt": "a cat " * n} for name, n in (("long", 50), ("short", 1)))
    assert main(edit(inverted, out, edits_flag(tmp_path / "e.jsonl", long, short))) == 0
    assert "prompts that were truncated to the length that the text encoder reads: 1" in capsys.readouterr().out
    assert {name: row.prompt_truncated for (_, _, name), row in rows(out).items()} == {"long": True, "short": False}
    assert main(["verify", str(out)]) == 0


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
    settings = ["--edit.kind=replace", "--edit.cross_replace_steps=0.7", "--edit.self_replace_steps=0.1"]
    assert main([*command, *settings]) == 0
    assert f"{file}: " in capsys.readouterr().out
    (stored,) = read_inversions(inverted, [("a", "003")])
    by_hand = edit_image(stored, prompt, EditSettings(kind="replace", **shares))
    (job,) = edited_images(tmp_path / "out").values()
    assert difference(decode(file.read_bytes()), job) <= 1
    assert difference(torch.from_numpy(np.array(by_hand)).permute(2, 0, 1), job) <= 1


def test_every_attention_of_a_list_and_of_the_flags_makes_its_edit(inverted: Path, tmp_path: Path):
    prompt = "a small blue circle, number 1"
    masks = {"masactrl_words": ["circle", ["circle", "#1"]], "masactrl_layers": [0, 1], "masactrl_threshold": 0.5}
    words = {"blend_words": [["red", "circle"], "#2"], "subtract_words": ["", "small"], "blend_threshold": 0.9}
    settings: dict[str, dict[str, Any]] = {
        "maps": {"kind": "replace"},
        "masactrl": {"attention": "masactrl", "masactrl_layers": [0, 1]},
        "masked": {"attention": "masactrl", **masks},
        "features": {"attention": "plug-and-play"},
        "blended": {"attention": "plug-and-play", **words},
    }
    requests = [{"key": "001", "name": name, "edit_prompt": prompt, **chosen} for name, chosen in settings.items()]
    flag = edits_flag(tmp_path / "e.jsonl", {"key": "001", "name": "source"}, *requests)
    assert main(edit(inverted, tmp_path / "out", flag)) == 0
    images = {name: image for (_, _, name), image in edited_images(tmp_path / "out").items()}
    assert images.keys() == {"source", *settings}
    (stored,) = read_inversions(inverted, [("a", "001")])
    for name, chosen in settings.items():
        alone = torch.from_numpy(np.array(edit_image(stored, prompt, EditSettings(**chosen)))).permute(2, 0, 1)
        assert difference(alone, images[name]) <= 1
    command = ["edit", "--inversions", str(inverted), "--key", "001", "--prompt", prompt]
    flags = [f"--edit.{name}={json.dumps(value)}" for name, value in settings["masked"].items() if name != "attention"]
    file = tmp_path / "x.png"
    assert main([*command, "--output", str(file), "--edit.attention=masactrl", *flags]) == 0
    assert difference(decode(file.read_bytes()), images["masked"]) <= 1


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


def test_the_score_of_a_run_says_which_edits_have_none(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard = write_shard(tmp_path / "a.tar", captioned(2))
    assert main(arguments(tiny_model, shard, tmp_path / "inversions")) == 0
    mask: dict[str, Json] = {"mask": [0, 9], "mask_size": [16, 16]}

    def scored(exit_code: int, *lines: dict[str, Json]) -> str:
        flag = edits_flag(tmp_path / "e.jsonl", *lines)
        assert main(edit(tmp_path / "inversions", tmp_path / "out", flag)) == exit_code
        capsys.readouterr()
        assert main(["score", str(tmp_path / "out")]) == 0
        return capsys.readouterr().out

    without_prompt: list[dict[str, Json]] = [{"key": "000", **mask}, {"key": "001", **mask}]
    assert scored(0, *without_prompt) == "no edit has scores\nedits without scores: 2 without a prompt\n"
    others: list[dict[str, Json]] = [
        {"key": "000", "edit_prompt": "a blue circle"},
        {"key": "000"},
        {"key": "none", "edit_prompt": "a star", **mask},
        {"key": "001", "edit_prompt": "a blue star", **mask},
    ]
    table = scored(3, *without_prompt, *others).split("\n\n")[0]
    assert table.splitlines()[2].startswith("| all | 1 | ")
    shard.unlink()
    assert main(["score", str(tmp_path / "out")]) == 0
    reasons = capsys.readouterr().out.removeprefix("no edit has scores\nedits without scores: ").strip()
    assert Counter(reasons.split(", ")) == Counter(
        [
            "2 without a prompt",
            "1 without a mask",
            "1 without a mask and a prompt",
            "1 that are not done",
            "1 whose input image cannot be read",
        ]
    )


def test_edits_with_a_blend_word_that_is_missing_are_counted(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = write_pie_folder(tmp_path / "bench", blended_word="square circle")
    assert write_pie_shard(folder, tmp_path / "bench.tar") == 3
    assert main(arguments(tiny_model, tmp_path / "bench.tar", tmp_path / "inversions")) == 0
    assert main(edit(tmp_path / "inversions", tmp_path / "out", f"--data.edits={folder}")) == 0
    capsys.readouterr()
    assert main(["score", str(tmp_path / "out")]) == 0
    assert "\n1 of 3 edits have a blend word that is not in its prompt" in capsys.readouterr().out
    assert main(["score", str(tmp_path / "out"), "--json"]) == 0
    counted = {edit["key"]: edit["has_missing_blend_word"] for edit in json.loads(capsys.readouterr().out)}
    assert counted == {key: key == next(iter(EDITS)) for key in EDITS}


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
