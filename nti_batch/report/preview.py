"""The preview of a run: some records beside their sources, in one image file."""

from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from nti_batch.data.images import to_bytes, to_image
from nti_batch.files import atomic_open
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.run_folder import AnyRun
from nti_batch.output.stored_part import Located
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.plans.missing_images import ImagePlan
from nti_batch.records import WorkUnit
from nti_batch.report.changed_words import mark_all_changes
from nti_batch.report.drawn_text import INK, MAX_CAPTION, DrawnWord, draw_line, drawn, fitting, font, wrap
from nti_batch.report.examples import Example, examples_of
from nti_batch.scores.metrics import psnr

MARGIN = 12
LABEL = 18
LABEL_SIZE = 10
MAX_SIDE = 1024
"""Largest side of an image of the preview, in pixels."""


def choose_rows(run: AnyRun, units: Sequence[WorkUnit], count: int) -> list[Located[Any]]:
    """At most `count` finished rows with their parts, evenly over the work units; few manifests are read."""
    stride = max(1, len(units) // count)
    evenly = (unit for first in range(stride) for unit in units[first::stride])
    done = ([found for found in run.located_rows(unit) if found[1].status == "done"] for unit in evenly)
    of_units = islice(filter(None, done), count)
    in_turn = (found for turn in zip_longest(*of_units) for found in turn if found)
    return sorted(islice(in_turn, count), key=lambda found: (found[1].shard, found[1].id))


def draw_preview(plan: ImagePlan | EditPlan, networks: StableDiffusion, count: int = 8) -> Path | None:
    """Write OUT/preview.png, with a row for each of some records; None if their inputs cannot be read any more.

    Args:
        plan: Work of a run with at least one finished record.
        networks: The model of the run.
        count: Maximum number of rows.
    """
    located = choose_rows(plan.run, plan.units, count)
    examples = [e for e in examples_of(plan, located, networks, [], with_ddim=True) if len(e.images) > 1]
    shown = [e for e in examples if isinstance(plan, EditPlan) or "input" in e.images]
    if not shown:
        return None
    path = plan.run.out / "preview.png"
    sheet = draw_rows([_strip(example) for example in shown])
    with atomic_open(path) as file:
        sheet.save(file, "PNG")
    return path


def _strip(example: Example) -> tuple[list[str], Tensor, list[str]]:
    """Captions, images and labels of a row of the preview."""
    titles, images = list(example.images), torch.stack(list(example.images.values()))
    row = example.row
    captions = [f"{row.shard}/{row.key}: {example.captions[0]}", *example.captions[1:]]
    if "input" not in example.images:
        return captions, images, titles
    scores = psnr(images, images[:1]).tolist()
    labels = [f"{title} {score:.1f} dB" for title, score in zip(titles[1:], scores[1:], strict=True)]
    return captions, images, [titles[0], *labels]


def draw_rows(rows: Sequence[tuple[Sequence[str], Tensor, Sequence[str]]]) -> Image.Image:
    """Draw rows in two columns.

    Args:
        rows: Lines of text, images, [images, 3, height, width] in [0, 1], and a label for each image.
    """
    height, width = rows[0][1].shape[-2:]
    zoom = min(max(1, 128 // height), MAX_SIDE / max(height, width))
    shown_width, shown_height = round(width * zoom), round(height * zoom)
    cell_width = shown_width + MARGIN
    strip = len(rows[0][1]) * cell_width + 2 * MARGIN
    texts = [_wrapped(captions, strip - 2 * MARGIN) for captions, _, _ in rows]
    text_height = max(map(len, texts)) * LABEL
    cell_height, columns = text_height + shown_height + 2 * LABEL, 2 if len(rows) > 1 else 1
    sheet = Image.new("RGB", (columns * strip, -(-len(rows) // columns) * cell_height + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, ((_, images, labels), lines) in enumerate(zip(rows, texts, strict=True)):
        left, top = number % columns * strip + MARGIN, number // columns * cell_height + MARGIN
        for place, line in enumerate(lines):
            draw_line(pen, (left, top + place * LABEL), line)
        top += text_height
        for i, (label, image) in enumerate(zip(labels, images, strict=True)):
            resampling = Image.Resampling.BOX if zoom < 1 else Image.Resampling.NEAREST
            tile = to_image(to_bytes(image)).resize((shown_width, shown_height), resampling)
            sheet.paste(tile, (left + i * cell_width, top))
            text = fitting(label, LABEL_SIZE, cell_width - 2)
            pen.text((left + i * cell_width, top + shown_height + 1), text, INK, font(LABEL_SIZE))
    return sheet


def _wrapped(captions: Sequence[str], width: int) -> list[list[DrawnWord]]:
    """The lines of captions, of which the first is the source's."""
    words = mark_all_changes([caption[:MAX_CAPTION] for caption in captions])
    return [line for caption in words for line in wrap(drawn(caption), width)]
