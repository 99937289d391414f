"""Scores of edits in PIE-Bench's columns, by two protocols: the benchmark's own, and one without its bias.

`pie-bench` sets the edited part of both images to zero and averages over all pixels. With the share s of the unedited
pixels among all pixels,

    MSE = s MSE(unedited pixels)        PSNR = PSNR(unedited pixels) - 10 log10 s

so that a larger mask gives a better score. Its SSIM leaves out a border of 5 pixels: it is that of torchmetrics up to
version 1.4.1, as in the time of the benchmark. `unedited` averages over the unedited pixels alone. The scores of the
edited part do the same with the parts exchanged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nti_batch.scores.learned import LearnedScores
from nti_batch.scores.metrics import mse, psnr, ssim

Protocol = Literal["pie-bench", "unedited"]


_WHITE: Mapping[Protocol, float] = {"pie-bench": 255.0, "unedited": 1.0}
"""Value of white in the images that DINO gets."""

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

    psnr_edited: float | None
    """PSNR of the edited part against the source, in dB; LPIPS, MSE and SSIM likewise: how much the edit changes."""

    lpips_edited: float | None
    mse_edited: float | None
    ssim_edited: float | None


COLUMNS = {
    "structure": ("structure distance x 10^3", 1e3),
    "psnr": ("PSNR", 1.0),
    "lpips": ("LPIPS x 10^3", 1e3),
    "mse": ("MSE x 10^4", 1e4),
    "ssim": ("SSIM x 10^2", 1e2),
    "clip_whole": ("CLIP whole", 1.0),
    "clip_edited": ("CLIP edited", 1.0),
    "psnr_edited": ("PSNR edited", 1.0),
    "lpips_edited": ("LPIPS edited x 10^3", 1e3),
    "mse_edited": ("MSE edited x 10^4", 1e4),
    "ssim_edited": ("SSIM edited x 10^2", 1e2),
}
"""Title of each column, and the factor that its title names."""


_TITLES: Mapping[Protocol, str] = {"pie-bench": "PIE-Bench", "unedited": "pixels of the part alone"}


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
    of_edited = _scores_of_part(edited, sources, inside, learned, protocol)
    columns = {
        "structure": learned.structure and _to_list(learned.structure(edited, sources, _WHITE[protocol])),
        **_scores_of_part(edited, sources, ~inside, learned, protocol),
        "clip_whole": learned.clip and _to_list(learned.clip(edited, prompts)),
        "clip_edited": learned.clip and _to_list(learned.clip(edited * inside[:, None], prompts), _has_pixels(inside)),
        **{f"{name}_edited": column for name, column in of_edited.items()},
    }
    return [
        EditScores(**{name: column[i] if column else None for name, column in columns.items()})
        for i in range(len(edited))
    ]


def _scores_of_part(
    edited: Tensor, sources: Tensor, part: Tensor, learned: LearnedScores, protocol: Protocol
) -> dict[str, list[float | None] | None]:
    """Score the pixels of a part, bool [batch, height, width], of edited images against their sources."""
    valid = _has_pixels(part)
    if protocol == "pie-bench":
        images, pixels = (edited * part[:, None], sources * part[:, None]), None
        ssim_pixels = _without_border(part)
    else:
        images, pixels, ssim_pixels = (edited, sources), part, part
    return {
        "psnr": _to_list(psnr(*images, pixels), valid),
        "lpips": _to_list(learned.lpips(*images, pixels), valid) if learned.lpips else None,
        "mse": _to_list(mse(*images, pixels), valid),
        "ssim": _to_list(ssim(*images, ssim_pixels), valid & _has_pixels(ssim_pixels)),
    }


def _has_pixels(part: Tensor) -> Tensor:
    """Whether a part of each image, bool [batch, height, width], has any pixel."""
    return part.any(dim=(1, 2))


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
    shown = [name for name in COLUMNS if any(getattr(score, name) is not None for score in every)]
    rows = [("all", every), *(groups.items() if len(groups) > 1 else ())]
    lines = [
        table_line([_TITLES[protocol], "edits", *(COLUMNS[name][0] for name in shown)]),
        table_line(["---", *["---:"] * (len(shown) + 1)]),
        *(
            table_line([title, str(len(row)), *(format_score(mean_score(row, name)) for name in shown)])
            for title, row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


def table_line(cells: Sequence[str]) -> str:
    """Join the cells of a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def mean_score(scores: Sequence[EditScores], name: str) -> float | None:
    """Average a score over the edits that have it, in the column's unit; None if none has."""
    values = [value for score in scores if (value := getattr(score, name)) is not None]
    return sum(values) / len(values) * COLUMNS[name][1] if values else None


def format_score(score: float | None) -> str:
    """Format a mean score as a cell of a table; '-' if there is none."""
    return "-" if score is None else f"{score:.2f}"
