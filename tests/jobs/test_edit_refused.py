"""`nti-batch edit` refuses invalid edits and settings with the reason."""

from pathlib import Path

import pytest
from helpers.edits import edit, edits_flag, rows

from nti_batch.cli import main
from nti_batch.json_object import Json
from nti_batch.models.stable_diffusion import StableDiffusion


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
        "case": (
            {"key": "000", "prompt": "A small red circle, number 0", "edit_prompt": "a cat"},
            "the edit is for the prompt 'A small red circle, number 0'",
        ),
        "word": (
            {"key": "000", "edit_prompt": "a blue circle", "equalizer": {"square": 2}},
            "'square' does not occur in the prompt 'a blue circle'",
        ),
        "blend": (
            {"key": "000", "edit_prompt": "a blue circle", "blend_words": ["dog", "circle"]},
            "'dog' does not occur in the prompt 'a small red circle, number 0'",
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
    assert "1 done, 8 failed, 0 missing of 9 edits" in printed
    assert "6 failed at stage 'edit'" in printed
    assert "2 failed at stage 'inversion'" in printed
    by_name = {name: row for (_, _, name), row in rows(tmp_path / "out").items()}
    assert {name for name, row in by_name.items() if row.status == "done"} == {"good"}
    for name, (_, reason) in invalid.items():
        assert reason in by_name[name].error
    assert main(job) == 3, "a second run has no work, but reports the failures"
    assert {name: row for (_, _, name), row in rows(tmp_path / "out").items()} == by_name
    assert main(["status", str(tmp_path / "out"), "--exit_code"]) == 3


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
    assert "is a run of `nti-batch invert`: give the --output.dir of `nti-batch edit`" in capsys.readouterr().err


WRONG = {
    '{"key": "000"': "e.jsonl:2: this is no JSON",
    "[1]": "e.jsonl:2: this is no JSON object: [1]",
    '{"edit_prompt": "x"}': "e.jsonl:2: the key of the image is missing",
    '{"key": "000", "shard": "c"}': "e.jsonl:2: shard 'c' is unknown; the inversions have the shards 'a'; 'b'",
    '{"key": "000", "shard": "a", "promt": "x"}': "e.jsonl:2: there is no column 'promt', allowed: shard, key, name",
    '{"key": "000", "shard": "a", "cross_replace_steps": "much"}': "e.jsonl:2: "
    "cross_replace_steps is 'much', allowed: a number",
    '{"key": "000", "shard": "a", "cross_replace_steps": 2}': "e.jsonl:2: cross_replace_steps is 2.0, allowed: 0 to 1",
    '{"key": "000", "shard": "a", "kind": "swap"}': "e.jsonl:2: kind is 'swap', allowed: 'replace' or 'refine'",
    '{"key": "000", "shard": "a", "blend_words": ["red"]}': "e.jsonl:2: blend_words is ['red'], allowed: a word",
    '{"key": "000", "shard": "a", "mask": [0, 1]}': "e.jsonl:2: mask and mask_size belong together, and mask_size is",
    '{"key": "000", "shard": "a", "mask": [0, 1], "mask_size": [1000000000, 1000000000]}': "e.jsonl:2: "
    "the mask's grid has height 1000000000 and width 1000000000, allowed: 1 to 16384",
    '{"key": "000", "shard": "a", "edit_prompt": "a \\ud800"}': "e.jsonl:2: edit_prompt is 'a \\ud800', allowed:",
    '{"key": "000", "shard": "a", "edit_prompt": " "}': "e.jsonl:2: edit_prompt is ' ', allowed: a text in Unicode",
    '{"key": "000", "shard": "a", "equalizer": {"red": 1e300}}': "e.jsonl:2: equalizer['red'] is 1e+300, allowed",
    '{"key": "000", "shard": "a", "blend_words": {"red": "blue", "a": "b"}}': "e.jsonl:2: blend_words is {'red'",
    '{"key": "000", "shard": "a", "attention": 5}': "e.jsonl:2: attention is 5, allowed: 'prompt-to-prompt' or",
    '{"key": "000", "shard": "a", "key": "001"}': "e.jsonl:2: the key 'key' occurs more than once",
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
        (["--data.edit_prompt= "], "data.edit_prompt is empty: give a text, or leave it out"),
        (["--data.edit_prompt=a \udcff"], "data.edit_prompt is 'a \\udcff', allowed: texts in Unicode"),
        (["--edit.proximal=l2"], "--edit.proximal is l2, allowed: 'l0' or 'l1' or null"),
        (["--edit.skip_steps=nan"], "--edit.skip_steps is nan, allowed: a number"),
        (["--edit.blend_words=cup"], "--edit.blend_words is cup, allowed: a list such as [a, b] or null"),
        (["--edit.equalizer={1: 2}"], "equalizer has the word 1, allowed: texts; in YAML put numbers"),
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
        (["--key=001", "--prompt=a dog", "--edit.kind=replace"], "to replace words"),
        (["--key=001", "--edit.cross_replace_steps=2"], "cross_replace_steps is 2.0, allowed: 0 to 1"),
        (["--key=001", "--prompt="], "--prompt is empty: give a text, or leave it out"),
        (["--key=001", "--prompt=a \udcff"], "--prompt is 'a \\udcff', allowed: texts in Unicode"),
    ],
)
def test_an_invalid_single_edit_is_refused_in_one_line(
    inverted: Path, tmp_path: Path, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["edit", f"--inversions={inverted}", f"--output={tmp_path}/x.png", *flags]) == 2
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1


def test_a_run_without_masks_has_no_scores(inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(edit(inverted, tmp_path / "out")) == 0
    capsys.readouterr()
    assert main(["score", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "no edit has scores\nedits without scores: 6 without a mask and a prompt\n"
    assert main(["score", str(inverted)]) == 2
