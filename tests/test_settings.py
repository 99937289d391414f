"""`run.json`: its keys are fixed, and an error in it is reported with file, key, value and what is allowed."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.inversions import SETTINGS
from helpers.jobs import arguments
from helpers.tiny import captioned, write_shard

from nti_batch import EditSettings
from nti_batch.cli import main
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.json_object import Json, JsonObject
from nti_batch.settings import EditRunSettings, InversionRunSettings, flatten

INVERSION_JSON: dict[str, Json] = {
    "model": {
        "name": "demo",
        "revision": None,
        "variant": None,
        "config": None,
        "fingerprint": "sha256:0",
        "precision": "float32",
        "num_steps": 2,
        "optimize_pooled": False,
        "method": "null-text",
        "guidance_scale": 7.5,
        "num_inner_steps": 10,
        "solver": "adam",
        "null_init": "empty",
        "learning_rate": 1e-2,
        "early_stop_epsilon": 1e-5,
        "early_stop_growth": 2e-5,
    },
    "data": {"caption": "txt", "height": 8, "width": 16, "units_per_shard": 3, "images": False},
    "output": {"storage": "float32"},
}
"""Keys that files have: renaming a field of a dataclass must not change them."""

EDIT_SETTINGS = EditRunSettings(
    model_name=None,
    model_config=None,
    inversions="/runs/inversions",
    edits=None,
    edit_prompt="a cat",
    units_per_shard=8,
    edit=EditSettings(
        kind="replace",
        cross_replace_steps={"default_": 0.4, "cat": (0.1, 0.9)},
        self_replace_steps=(0.2, 0.6),
        equalizer={"cat": 2.0},
        masactrl_steps=(0.1, 0.9),
        blend_words=("dog", ("cat", "#2")),
        subtract_words=("sofa", ""),
    ),
)
EDIT_JSON = {
    "model": {"name": None, "config": None},
    "data": {"inversions": "/runs/inversions", "edits": None, "edit_prompt": "a cat", "units_per_shard": 8},
    "edit": {
        "kind": "replace",
        "cross_replace_steps": {"default_": 0.4, "cat": [0.1, 0.9]},
        "self_replace_steps": [0.2, 0.6],
        "masactrl_steps": [0.1, 0.9],
        "equalizer": {"cat": 2.0},
        "blend_words": ["dog", ["cat", "#2"]],
        "blend_threshold": 0.3,
        "blend_start": 0.2,
        "subtract_words": ["sofa", ""],
    },
}


def test_the_settings_of_an_inversion_run_are_written_under_these_keys_and_read_back():
    assert SETTINGS.to_json() == INVERSION_JSON
    assert InversionRunSettings.from_json(JsonObject(INVERSION_JSON, "run.json")) == SETTINGS


def test_the_settings_of_an_edit_run_are_written_under_these_keys_and_read_back():
    assert EDIT_SETTINGS.to_json() == EDIT_JSON
    assert EditRunSettings.from_json(JsonObject(json.loads(json.dumps(EDIT_JSON)), "run.json")) == EDIT_SETTINGS


def test_settings_that_came_later_are_written_where_they_matter():
    ddpm = replace(SETTINGS, inversion=InversionSettings(method="ddpm", noise_seed=7))
    assert flatten(ddpm.to_json()) == flatten(INVERSION_JSON) | {"model.method": "ddpm", "model.noise_seed": 7}
    assert InversionRunSettings.from_json(JsonObject(ddpm.to_json(), "run.json")) == ddpm
    guidance = EditSettings(guidance_scale=15.0, skip_steps=0.36, proximal="l1", recon_lr=1.0, dilate_mask=2)
    guided = replace(EDIT_SETTINGS, edit=guidance)
    assert EditRunSettings.from_json(JsonObject(json.loads(json.dumps(guided.to_json())), "run.json")) == guided


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("proximal", "l2", "edit.proximal is 'l2', allowed: 'l0' or 'l1'"),
        ("quantile", "0.7", "edit.quantile is '0.7', allowed: a finite number"),
        ("dilate_mask", 1.5, "edit.dilate_mask is 1.5, allowed: an integer from 0 to 64"),
        ("guidance_scale", 0.5, "edit: guidance_scale is 0.5, allowed: at least 1"),
    ],
)
def test_guidance_of_edits_that_is_damaged_is_reported(name: str, value: object, expected: str):
    content = json.loads(json.dumps(EDIT_JSON))
    content["edit"][name] = value
    with pytest.raises(ValueError, match=re.escape(f"run.json: {expected}")):
        EditRunSettings.from_json(JsonObject(content, "run.json"))


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of inversions and a run of edits."""
    folder = tmp_path_factory.mktemp("settings")
    shard = write_shard(folder / "a.tar", captioned(1))
    assert main([*arguments(tiny_model, shard, folder / "inverted"), "--model.method=negative-prompt"]) == 0
    job = ["edit", f"--data.inversions={folder}/inverted", f"--output.dir={folder}/edited", "--trainer.accelerator=cpu"]
    assert main(job) == 0
    return folder


def put(section: str, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of one setting."""
    return lambda content: content["settings"][section].__setitem__(key, value)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a text for a number": (
        put("model", "num_steps", "3"),
        "settings.model.num_steps is '3', allowed: an integer from",
    ),
    "a truth for a number": (put("data", "height", True), "settings.data.height is True, allowed: an integer from 1"),
    "a number out of range": (
        put("data", "units_per_shard", 10**9),
        "settings.data.units_per_shard is 1000000000, allowed: an integer from 1 to 65536",
    ),
    "an unknown choice": (
        put("output", "storage", "int4"),
        "settings.output.storage is 'int4', allowed: 'float32' or 'float16' or 'compact'",
    ),
    "a list for a text": (put("data", "caption", ["txt"]), "settings.data.caption is ['txt'], allowed: a string"),
    "an unknown key": (put("model", "colour", 1), "settings.model.colour is an unknown key, allowed: name, revision"),
    "a missing key": (
        lambda content: content["settings"]["model"].pop("solver"),
        "the key settings.model.solver is missing",
    ),
    "a missing section": (lambda content: content["settings"].pop("data"), "the key settings.data is missing"),
    "settings that are no object": (
        lambda content: content.__setitem__("settings", [1]),
        "settings is [1], allowed: a JSON object",
    ),
    "shards that are no texts": (
        lambda content: content.__setitem__("shards", {"a": 1}),
        "shards.a is 1, allowed: a string",
    ),
    "no format version": (lambda content: content.pop("format_version"), "the key format_version is missing"),
    "a newer format": (
        lambda content: content.__setitem__("format_version", 3),
        "has the format version 3, and this nti_batch reads versions up to 2: update nti_batch",
    ),
    "the trial format": (
        lambda content: content.__setitem__("format_version", 1),
        "format_version is 1, allowed: an integer from 2",
    ),
    "another command": (
        lambda content: content.__setitem__("command", "paint"),
        "command is 'paint', allowed: 'invert' or 'edit'",
    ),
}
COMMANDS = {
    "invert": ["invert", "--data.shards={folder}/a.tar", "--output.dir={out}", "--trainer.accelerator=cpu"],
    "status": ["status", "{out}"],
    "verify": ["verify", "{out}"],
    "report": ["report", "{out}", "--images=0"],
    "export": ["export", "{out}", "--output", "{out}/exported"],
    "edit": ["edit", "--data.inversions={out}", "--output.dir={out}/edits", "--trainer.accelerator=cpu"],
    "one image": ["edit", "--inversions={out}", "--key=000", "--output={out}/x.png"],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_reports_what_is_wrong_in_run_json(
    finished: Path, tmp_path: Path, command: str, fault: str, capsys: pytest.CaptureFixture[str]
):
    out = Path(shutil.copytree(finished / "inverted", tmp_path / "out"))
    content = json.loads((out / "run.json").read_text())
    change, expected = FAULTS[fault]
    change(content)
    (out / "run.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main([word.format(folder=finished, out=out) for word in COMMANDS[command]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nti-batch: ") and error.count("\n") == 1
    assert str(out / "run.json") in error and expected in error


@pytest.mark.parametrize("command", ["status", "verify", "report", "score"])
def test_a_run_of_edits_is_checked_as_well(
    finished: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
):
    out = Path(shutil.copytree(finished / "edited", tmp_path / "out"))
    content = json.loads((out / "run.json").read_text())
    content["settings"]["edit"]["kind"] = "mix"
    (out / "run.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main([command, str(out)]) == 2
    assert f"{out / 'run.json'}: edit: kind is 'mix', allowed: 'replace' or 'refine'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000])
def test_a_run_json_that_is_no_json_object_is_reported(
    finished: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
):
    out = Path(shutil.copytree(finished / "inverted", tmp_path / "out"))
    (out / "run.json").write_text(text)
    assert main(["status", str(out)]) == 2
    assert str(out / "run.json") in capsys.readouterr().err
