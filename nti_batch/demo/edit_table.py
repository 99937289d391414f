"""Tables, plots and pictures of judged edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite, isnan, nan
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from nti_batch.demo.edits import KINDS, EditVerdict, Kind, SceneEdit
from nti_batch.demo.scenes import draw
from nti_batch.report.preview import draw_rows


@dataclass(frozen=True, slots=True, eq=False)
class Edited:
    """Result of an edit."""

    edit: SceneEdit
    image: Tensor
    """Edited image, [3, 64, 64] in [0, 1]."""

    verdict: EditVerdict


@dataclass(frozen=True, slots=True)
class Summary:
    """Shares and means over the edits of one kind."""

    method: str
    kind: Kind
    number: int
    asked: float
    """Share of edits that show the requested attribute."""

    kept: float
    """Share of edits that keep everything else."""

    unedited: float
    """Mean PSNR of the unedited part, in dB; nan if no edit has such a part."""

    truth: float
    """Mean PSNR against the edited scene, drawn, in dB."""

    @classmethod
    def of(cls, method: str, kind: Kind, edited: Sequence[Edited]) -> "Summary":
        """Sum up the edits of one kind.

        Args:
            method: Name of the method.
            kind: Kind of edit to sum up.
            edited: Edits of all kinds, at least one of them of this kind.
        """
        verdicts = [e.verdict for e in edited if e.edit.kind == kind]
        unedited = [v.psnr_unedited for v in verdicts if isfinite(v.psnr_unedited)]
        return cls(
            method,
            kind,
            len(verdicts),
            fmean(v.asked for v in verdicts),
            fmean(v.object_kept and v.others_kept and v.background_kept for v in verdicts),
            fmean(unedited) if unedited else nan,
            fmean(v.psnr_truth for v in verdicts),
        )

    @property
    def cell(self) -> str:
        """Cell of a Markdown table: as asked and all else kept in %, unedited part and truth in dB."""
        unedited = "" if isnan(self.unedited) else f"{self.unedited:.1f}"
        return f"{self.asked:.0%} / {self.kept:.0%} / {unedited} / {self.truth:.1f}".replace("%", "")


def table_header(edits: Sequence[SceneEdit], kinds: Sequence[Kind]) -> str:
    """Write the first two lines of a Markdown table; each kind has the number of its edits."""
    counts = [sum(edit.kind == kind for edit in edits) for kind in kinds]
    titles = " | ".join(f"{kind} ({count})" for kind, count in zip(kinds, counts, strict=True))
    return f"| guidance scale | method | {titles} |\n|{'---|' * (2 + len(kinds))}"


def table_row(guidance_scale: float, summaries: Sequence[Summary]) -> str:
    """Write a line of a Markdown table: one method at one guidance scale."""
    cells = [f"{guidance_scale:g}", summaries[0].method, *(summary.cell for summary in summaries)]
    return f"| {' | '.join(cells)} |"


def plot(summaries: Sequence[Summary], path: Path) -> None:
    """Draw a panel for each kind: the share of edits that are as asked against the PSNR of the unedited part.

    Args:
        summaries: Summaries, each of which is a point.
        path: Path of the image file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    kinds, methods = (list(dict.fromkeys(getattr(s, name) for s in summaries)) for name in ("kind", "method"))
    figure = Figure(figsize=(3 * len(kinds), 4.8), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for kind, axes in zip(kinds, panels, strict=True):
        axes.set(title=kind, xlabel="unedited part, dB", ylim=(0, 1.04))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        for summary in (s for s in summaries if s.kind == kind):
            number = methods.index(summary.method)
            style = {"color": f"C{number % 10}", "marker": "os^Dv"[number // 10 % 5]}
            axes.scatter(summary.unedited, summary.asked, label=summary.method, **style)
    panels[0].set_ylabel("as asked")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100)


def draw_edits(columns: Mapping[str, Sequence[Edited]], path: Path) -> None:
    """Draw two edits of each kind: the source, the edit by each method, and the truth.

    Args:
        columns: Edits by method, in the same order for each.
        path: Path of the image file.
    """
    of_first, rows = next(iter(columns.values())), []
    titles = ["source", *columns, "drawn as asked"]
    for kind in KINDS:
        for i in islice((i for i, e in enumerate(of_first) if e.edit.kind == kind), 2):
            edit = of_first[i].edit
            images = [draw(edit.source), *(edited[i].image for edited in columns.values()), draw(edit.edited)]
            rows.append(([edit.source.caption, edit.edited.caption], torch.stack(images), titles))
    draw_rows(rows).save(path)
