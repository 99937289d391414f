"""The evaluation of edits edits each scene by both jobs, resumes after an interruption, and judges the edits."""

import random
import sys
from pathlib import Path

import pytest
from PIL import Image

from nti_batch.benchmarks.solvers import SOLVERS
from nti_batch.demo import evaluate_edits
from nti_batch.demo.edit_methods import METHODS
from nti_batch.demo.edits import KINDS, edits_of
from nti_batch.demo.scenes import unseen_scenes
from nti_batch.diffusion.edit_settings import EditSettings


def test_every_scene_gets_an_edit_of_each_kind_but_only_a_single_object_moves():
    rng = random.Random(0)
    for scene in unseen_scenes(20):
        kinds = [edit.kind for edit in edits_of(scene, KINDS, rng)]
        assert kinds == [kind for kind in KINDS if kind != "place" or len(scene.objects) == 1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_valid_for_every_edit(name: str):
    method = METHODS[name]
    assert method.inversion in SOLVERS
    for edit in edits_of(unseen_scenes(1)[0], KINDS, random.Random(0)):
        EditSettings(**edit.settings.to_json() | dict(method.edit))


def evaluate(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--scenes", "2", "--guidance_scales", "2", "--methods", "ddim", "ddim, plain", "--kinds", "colour"]
    monkeypatch.setattr(sys, "argv", ["evaluate_edits", str(out), *flags, "--picture", "--plot"])
    evaluate_edits.main()


def test_the_command_prints_a_row_for_each_method_and_makes_no_finished_edit_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    evaluate(tmp_path, monkeypatch)
    table = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    assert rows == [["2", "ddim"], ["2", "ddim, plain"]]
    parts = {path: path.read_bytes() for path in tmp_path.rglob("*.tar")}
    # the scenes, one inversion of them for both methods, and the edits by each method
    assert len(parts) >= 4
    evaluate(tmp_path, monkeypatch)
    assert capsys.readouterr().out == table
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.tar")} == parts
    assert (tmp_path / "guidance-2-plot.png").exists()
    with Image.open(tmp_path / "guidance-2-edits.png") as sheet:
        # two edits of one kind in two columns; an edit shows source, two methods and truth
        assert sheet.width > 2 * 4 * 128 and sheet.height > 128


def test_a_job_that_fails_ends_the_command_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["evaluate_edits", str(tmp_path), "--scenes", "1", "--model", "no/such model"])
    with pytest.raises(SystemExit) as ended:
        evaluate_edits.main()
    assert ended.value.code == 2
