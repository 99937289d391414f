"""Tables and plots of judged edits are right."""

import random
from math import nan
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from nti_batch.demo.edit_table import Edited, Summary, plot, table_header, table_row
from nti_batch.demo.edits import KINDS, SceneEdit, edits_of, judge_edit
from nti_batch.demo.scenes import draw, unseen_scenes


def drawn(edit: SceneEdit, as_asked: bool) -> Edited:
    image = draw(edit.edited if as_asked else edit.source)
    return Edited(edit, image, judge_edit(image, edit.source, edit.edited))


def test_a_row_has_the_shares_of_each_kind():
    edits = [edits_of(scene, ["colour", "size"], random.Random(1)) for scene in unseen_scenes(4)]
    # all edits of sizes are right, and one of the four edits of colours
    edited = [drawn(size, True) for _, size in edits] + [drawn(c, i == 0) for i, (c, _) in enumerate(edits)]
    row = table_row(7.5, [Summary.of("m", kind, edited) for kind in ("colour", "size")])
    scale, method, colour, size = [cell.strip() for cell in row.split("|")[1:-1]]
    assert (scale, method) == ("7.5", "m")
    assert colour.split(" / ")[:3] == ["25", "100", "100.0"]
    assert size == "100 / 100 / 100.0 / 100.0"


def test_the_header_counts_the_edits_of_each_kind():
    edits = [edit for scene in unseen_scenes(6) for edit in edits_of(scene, KINDS, random.Random(1))]
    alone = sum(len(scene.objects) == 1 for scene in unseen_scenes(6))
    assert 0 < alone < 6
    assert f"| colour (6) | shape (6) | size (6) | place ({alone}) | background (6) |" in table_header(edits, KINDS)


def test_the_plot_has_a_point_for_each_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    points: list[tuple[float, float]] = []
    real = Axes.scatter

    def recorded(axes: Axes, x: float, y: float, **style: Any) -> object:
        points.append((x, y))
        return real(axes, x, y, **style)

    monkeypatch.setattr(Axes, "scatter", recorded)
    rows = [
        Summary(method, kind, 9, asked, 0.5, unedited, 20.0)
        for method, asked, unedited in (("a", 0.25, 30.0), ("b", 0.75, nan))
        for kind in KINDS
    ]
    plot(rows, tmp_path / "plot.png")
    assert len(points) == len(rows) and points.count((30.0, 0.25)) == len(KINDS)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
