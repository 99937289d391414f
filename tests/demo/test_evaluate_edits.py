"""The evaluation of edits makes the edits of each scene, and its table and plot are right."""

import random
import sys
from math import nan
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image

from nti_batch.demo import evaluate_edits
from nti_batch.demo.edits import KINDS, judge_edit
from nti_batch.demo.evaluate_edits import Edited, SceneEdit, Summary, edits_of, plot
from nti_batch.demo.scenes import draw, unseen_scenes


def test_every_scene_gets_an_edit_of_each_kind_but_only_a_single_object_moves():
    rng = random.Random(0)
    for scene in unseen_scenes(20):
        kinds = [edit.kind for edit in edits_of(scene, KINDS, rng)]
        assert kinds == [kind for kind in KINDS if kind != "place" or len(scene.objects) == 1]


def drawn(edit: SceneEdit, as_asked: bool) -> Edited:
    image = draw(edit.edited if as_asked else edit.source)
    return Edited(edit, image, judge_edit(image, edit.source, edit.edited))


def test_a_row_has_the_shares_of_its_kind():
    edits = [edits_of(scene, ["colour", "size"], random.Random(1)) for scene in unseen_scenes(4)]
    # all edits of sizes are right, and one of the four edits of colours
    edited = [drawn(size, True) for _, size in edits] + [drawn(c, i == 0) for i, (c, _) in enumerate(edits)]
    colour = [cell.strip() for cell in Summary.of("m", True, "colour", edited, 4.0).row.split("|")[1:-1]]
    size = [cell.strip() for cell in Summary.of("m", False, "size", edited, 4.0).row.split("|")[1:-1]]
    assert colour[:7] == ["m", "prompt-to-prompt", "colour", "4", "25%", "100%", "100.0"]
    assert size == ["m", "plain", "size", "4", "100%", "100%", "100.0", "100.0", "0.50"]


def test_the_plot_has_a_point_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    points: list[tuple[float, float]] = []
    real = Axes.scatter

    def recorded(axes: Axes, x: float, y: float, **style: Any) -> object:
        points.append((x, y))
        return real(axes, x, y, **style)

    monkeypatch.setattr(Axes, "scatter", recorded)
    rows = [
        Summary(method, controlled, kind, 9, asked, 0.5, unedited, 20.0, 1.0)
        for method, asked, unedited in (("a", 0.25, 30.0), ("b", 0.75, nan))
        for controlled in (True, False)
        for kind in KINDS
    ]
    plot(rows, tmp_path / "plot.png")
    assert len(points) == len(rows) and points.count((30.0, 0.25)) == 2 * len(KINDS)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_a_row_for_each_kind_and_draws_the_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    picture, plotted = tmp_path / "edits.png", tmp_path / "plot.png"
    flags = ["--scenes", "2", "--methods", "negative-prompt", "ddim", "--kinds", "colour", "background"]
    monkeypatch.setattr(sys, "argv", ["evaluate_edits", *flags, "--picture", str(picture), "--plot", str(plotted)])
    evaluate_edits.main()
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in capsys.readouterr().out.splitlines()[2:]]
    attentions, kinds = ("plain", "prompt-to-prompt"), ("colour", "background")
    assert rows == [[m, a, k, "2"] for m in ("negative-prompt", "ddim") for a in attentions for k in kinds]
    assert plotted.exists()
    with Image.open(picture) as sheet:
        # two edits of each of two kinds in two columns; an edit shows source, two methods and truth
        assert sheet.width > 2 * 4 * 128 and sheet.height > 2 * 128
