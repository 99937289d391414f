"""Scores of edits in PIE-Bench's columns, by two protocols: the benchmark's own, and one without its bias.

`pie-bench` sets the edited part of both images to zero and averages over all pixels. With the share s of the unedited
pixels among all pixels,

    MSE = s MSE(unedited pixels)        PSNR = PSNR(unedited pixels) - 10 log10 s

so that a larger mask gives a better score. Its SSIM leaves out a border of 5 pixels: it is that of torchmetrics up to
version 1.4.1, as in the time of the benchmark. `unedited` averages over the unedited pixels alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nti_batch.scores.learned import LearnedScores
from nti_batch.scores.metrics import mse, psnr, ssim

Protocol = Literal["pie-bench", "unedited"]


SSIM_BORDER = 5
"""Width in pixels of the border that torchmetrics left out of the mean of SSIM up to version 1.4.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditScores:
    """Scores of one edit; None where weights are missing or the mask leaves no pixel to score."""

    structure: float | None
    """DINO structure distance of the whole images."""

    psnr: float | None
    """PSNR of the unedited part against the source, in dB; LPIPS, MSE and SSIM are of the same part."""

    lpips: float | None
    mse: float | None
    ssim: float | None

    clip_whole: float | None
    """CLIP score of the whole edited image for the edit's prompt."""

    clip_edited: float | None
    """CLIP score with the unedited part set to zero, in both protocols."""


_COLUMNS = {
    "structure": ("structure distance x 10^3", 1e3),
    "psnr": ("PSNR", 1.0),
    "lpips": ("LPIPS x 10^3", 1e3),
    "mse": ("MSE x 10^4", 1e4),
    "ssim": ("SSIM x 10^2", 1e2),
    "clip_whole": ("CLIP whole", 1.0),
    "clip_edited": ("CLIP edited", 1.0),
}
"""Title of each column, and the factor that its title names."""


_TITLES: Mapping[Protocol, str] = {"pie-bench": "PIE-Bench", "unedited": "unedited pixels alone"}


def score_edits(
    edited: Tensor, sources: Tensor, inside: Tensor, prompts: list[str], learned: LearnedScores, protocol: Protocol
) -> list[EditScores]:
    """Score edits of sources.

    Args:
        edited: Edited images, [batch, 3, height, width] in [0, 1].
        sources: Images that were edited, in the same form.
        inside: Edited part, bool [batch, height, width].
        prompts: Prompt of each edit.
        learned: Scores by networks; those without weights are left out.
        protocol: `pie-bench` is the benchmark's own, which also gives DINO a white of 255 and leaves a border out of
            SSIM. `unedited` averages over the unedited pixels alone, and gives DINO the white of 1 that it was trained
            on.

    Returns:
        The scores of each image.
    """
    outside = ~inside
    if protocol == "pie-bench":
        images, where, white = (edited * outside[:, None], sources * outside[:, None]), None, 255.0
        ssim_where = _without_border(outside)
    else:
        images, where, white = (edited, sources), outside, 1.0
        ssim_where = outside
    has_outside, has_inside = outside.any(dim=(1, 2)), inside.any(dim=(1, 2))
    columns = {
        "structure": learned.structure and _to_list(learned.structure(edited, sources, white)),
        "psnr": _to_list(psnr(*images, where), has_outside),
        "lpips": learned.lpips and _to_list(learned.lpips(*images, where), has_outside),
        "mse": _to_list(mse(*images, where), has_outside),
        "ssim": _to_list(ssim(*images, ssim_where), has_outside & ssim_where.any(dim=(1, 2))),
        "clip_whole": learned.clip and _to_list(learned.clip(edited, prompts)),
        "clip_edited": learned.clip and _to_list(learned.clip(edited * inside[:, None], prompts), has_inside),
    }
    return [
        EditScores(**{name: column[i] if column else None for name, column in columns.items()})
        for i in range(len(edited))
    ]


def _without_border(pixels: Tensor) -> Tensor:
    """Return which pixels of images like these SSIM averages over, bool [batch, height, width]."""
    chosen = torch.zeros_like(pixels)
    chosen[:, SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER] = True
    return chosen


def _to_list(scores: Tensor, is_valid: Tensor | None = None) -> list[float | None]:
    """Return a score of each image, and None where it is not valid."""
    valid = torch.ones(len(scores)) if is_valid is None else is_valid
    return [score if ok else None for score, ok in zip(scores.tolist(), valid.tolist(), strict=True)]


def scores_table(groups: Mapping[str, Sequence[EditScores]], protocol: Protocol) -> str:
    """Lay out mean scores as a Markdown table: a row for all edits, and one for each group if there are several.

    The columns are the benchmark's; a column without any score is left out.

    Args:
        groups: Scores by the name of their group, such as a category in `pie_bench.CATEGORIES`.
        protocol: Protocol by which the edits were scored.
    """
    every = [score for group in groups.values() for score in group]
    shown = [name for name in _COLUMNS if any(getattr(score, name) is not None for score in every)]
    rows = [("all", every), *(groups.items() if len(groups) > 1 else ())]
    lines = [
        _line([_TITLES[protocol], "edits", *(_COLUMNS[name][0] for name in shown)]),
        _line(["---", *["---:"] * (len(shown) + 1)]),
        *(_line([title, str(len(row)), *(_mean(row, name) for name in shown)]) for title, row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(scores: Sequence[EditScores], name: str) -> str:
    """Average a score over the edits that have it, in the column's unit; '-' if none has."""
    values = [value for score in scores if (value := getattr(score, name)) is not None]
    return f"{sum(values) / len(values) * _COLUMNS[name][1]:.2f}" if values else "-"
