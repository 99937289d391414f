"""A picture that shows a run: input, VAE, DDIM and the run's method side by side, replayed from the files."""

from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nti_batch.data.images import to_bytes, to_image
from nti_batch.data.samples import read_inputs
from nti_batch.editing.reconstruct import replay
from nti_batch.jobs.invert_datamodule import InversionDataModule
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.inversions import InversionRun, read_inversions
from nti_batch.output.manifest import AnyRow
from nti_batch.output.run import OutputRun
from nti_batch.records import WorkUnit
from nti_batch.scores.metrics import psnr

MARGIN = 12


LABEL = 18


def choose_rows(run: OutputRun[Any, AnyRow], units: Sequence[WorkUnit], count: int) -> list[AnyRow]:
    """At most `count` records that are done, evenly over the work units; few manifests are read."""
    stride = max(1, len(units) // count)
    evenly = (unit for first in range(stride) for unit in units[first::stride])
    done = ([row for row in run.rows(unit) if row.status == "done"] for unit in evenly)
    of_units = islice(filter(None, done), count)
    by_turns = (found for turn in zip_longest(*of_units) for found in turn if found)
    return sorted(islice(by_turns, count), key=lambda row: (row.shard, row.id))


def draw_preview(
    run: InversionRun, data: InversionDataModule, networks: StableDiffusion, count: int = 8
) -> Path | None:
    """Write OUT/preview.png: a row for each of some images; None if their inputs are not to be had any more.

    Args:
        run: With at least one image done.
        data: Its input.
        networks: Its model.
        count: Rows, at most.
    """
    ids = [(row.shard, row.key) for row in choose_rows(run, data.units, count)]
    assert data.height is not None and data.width is not None
    inputs = read_inputs(data.units, data.caption, data.height, data.width, ids)
    stored = sorted(read_inversions(run.out, inputs), key=lambda s: ids.index((s.shard, s.key)))
    if not stored:
        return None
    pixels = torch.stack([inputs[s.shard, s.key].pixels for s in stored]).to(networks.device)
    columns = {
        "input": pixels / 255,
        "VAE": networks.decode_latents(networks.encode_images(pixels)),
        "ddim": replay(networks, stored, False),
        str(run.settings()["model.method"]): replay(networks, stored, True),
    }
    pictures, titles = torch.stack(list(columns.values()), 1).cpu(), tuple(columns)
    captions = ([f"{s.shard}/{s.key}: {s.prompt}"] for s in stored)
    rows = [(caption, row, _scored(row, titles)) for caption, row in zip(captions, pictures, strict=True)]
    path = run.out / "preview.png"
    draw_rows(rows).save(path)
    return path


def _scored(pictures: Tensor, titles: tuple[str, ...]) -> list[str]:
    """Titles with the PSNR against the first picture."""
    scores = psnr(pictures, pictures[:1]).tolist()
    return [titles[0], *(f"{title} {score:.1f} dB" for title, score in zip(titles[1:], scores[1:], strict=True))]


def draw_rows(rows: Sequence[tuple[Sequence[str], Tensor, Sequence[str]]]) -> Image.Image:
    """Two columns of rows: lines of text, pictures, [pictures, 3, height, width] in [0, 1], and what is below each."""
    height, width = rows[0][1].shape[-2:]
    zoom = max(1, 128 // height)
    cell_width, cell_height = width * zoom + MARGIN, height * zoom + (2 + len(rows[0][0])) * LABEL
    columns = 2 if len(rows) > 1 else 1
    strip = len(rows[0][1]) * cell_width + 2 * MARGIN
    sheet = Image.new("RGB", (columns * strip, -(-len(rows) // columns) * cell_height + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (captions, pictures, labels) in enumerate(rows):
        left, top = number % columns * strip + MARGIN, number // columns * cell_height + MARGIN
        for caption in captions:
            # neither keys nor prompts need be one line
            caption = " ".join(caption.split())
            while pen.textlength(caption, font) > strip - 2 * MARGIN:
                caption = caption[:-5] + "..."
            pen.text((left, top), caption, "black", font)
            top += LABEL
        for i, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
            tile = to_image(to_bytes(picture)).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + i * cell_width, top))
            pen.text((left + i * cell_width, top + height * zoom + 1), label, "black", font)
    return sheet
