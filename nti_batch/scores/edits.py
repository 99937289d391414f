"""Scores of edits in PIE-Bench's columns, by its own protocol and without its bias.

The benchmark looks at the unedited part by setting the edited part of both pictures to zero and averaging over all
pixels, so that with s the unedited part's share

    MSE = s MSE of the unedited pixels        PSNR = PSNR of the unedited pixels - 10 log10 s

and a larger mask gives a better score. `unedited` averages over the unedited pixels alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nti_batch.scores.learned import LearnedScores
from nti_batch.scores.metrics import mse, psnr, ssim

Protocol = Literal["pie-bench", "unedited"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EditScores:
    """Scores of one edit; None where the weights are missing or the mask leaves no pixel to look at."""

    structure: float | None
    """DINO structure distance of the whole pictures."""

    psnr: float | None
    """Of the unedited part against the source, in dB, as are LPIPS, MSE and SSIM."""

    lpips: float | None
    mse: float | None
    ssim: float | None
    clip_whole: float | None
    """CLIP score of the edited picture for the edit's prompt."""

    clip_edited: float | None
    """The same with all but the edited part set to zero, in both protocols."""


_COLUMNS = {
    "structure": ("structure distance x 10^3", 1e3),
    "psnr": ("PSNR", 1.0),
    "lpips": ("LPIPS x 10^3", 1e3),
    "mse": ("MSE x 10^4", 1e4),
    "ssim": ("SSIM x 10^2", 1e2),
    "clip_whole": ("CLIP whole", 1.0),
    "clip_edited": ("CLIP edited", 1.0),
}


_TITLES: Mapping[Protocol, str] = {"pie-bench": "PIE-Bench", "unedited": "unedited pixels alone"}


def score_edits(
    edited: Tensor, sources: Tensor, inside: Tensor, prompts: list[str], learned: LearnedScores, protocol: Protocol
) -> list[EditScores]:
    """Score edits of sources.

    Args:
        edited: Pictures, [batch, 3, height, width] in [0, 1].
        sources: The pictures that were edited.
        inside: The edited part, bool [batch, height, width].
        prompts: The edits', one a picture.
        learned: What networks there are.
        protocol: `pie-bench` is the benchmark's own, which also gives DINO a white of 255; `unedited` averages over
            the unedited pixels alone and gives DINO the white of 1 that it was trained on.
    """
    outside = ~inside
    if protocol == "pie-bench":
        pictures, where, white = (edited * outside[:, None], sources * outside[:, None]), None, 255.0
    else:
        pictures, where, white = (edited, sources), outside, 1.0
    is_left, is_edited = outside.any(dim=(1, 2)), inside.any(dim=(1, 2))
    columns = {
        "structure": learned.structure and _listed(learned.structure(edited, sources, white)),
        "psnr": _listed(psnr(*pictures, where), is_left),
        "lpips": learned.lpips and _listed(learned.lpips(*pictures, where), is_left),
        "mse": _listed(mse(*pictures, where), is_left),
        "ssim": _listed(ssim(*pictures, where), is_left),
        "clip_whole": learned.clip and _listed(learned.clip(edited, prompts)),
        "clip_edited": learned.clip and _listed(learned.clip(edited * inside[:, None], prompts), is_edited),
    }
    return [
        EditScores(**{name: column[i] if column else None for name, column in columns.items()})
        for i in range(len(edited))
    ]


def _listed(scores: Tensor, is_valid: Tensor | None = None) -> list[float | None]:
    valid = torch.ones(len(scores)) if is_valid is None else is_valid
    return [score if good else None for score, good in zip(scores.tolist(), valid.tolist(), strict=True)]


def scores_table(groups: Mapping[str, Sequence[EditScores]], protocol: Protocol) -> str:
    """Means over all edits and, where there are several groups, over those of each, as a Markdown table.

    Its layout is the benchmark's. A column without a score is left out.

    Args:
        groups: Scores by the name of their group, such as those in `pie_bench.CATEGORIES`.
        protocol: How they were scored.
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
    """Over the edits that have it, in the column's unit."""
    values = [value for score in scores if (value := getattr(score, name)) is not None]
    return f"{sum(values) / len(values) * _COLUMNS[name][1]:.2f}" if values else "-"
