"""A picture that shows a run of edits: sources, replayed from the inversions, beside what was made of them."""

from pathlib import Path

import torch
from torch import Tensor

from nti_batch.editing.reconstruct import replay
from nti_batch.jobs.edit_datamodule import EditDataModule
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.edits import EditRun
from nti_batch.output.inversions import read_inversions
from nti_batch.output.manifest import EditRow
from nti_batch.report.preview import choose_rows, draw_rows


def draw_edits(run: EditRun, data: EditDataModule, networks: StableDiffusion, count: int = 8) -> Path:
    """Write OUT/preview.png: a row for each of some edits.

    Args:
        run: With at least one edit done.
        data: Its input.
        networks: Its model.
        count: Rows, at most.
    """
    chosen = choose_rows(run, data.units, count)
    stored = list(read_inversions(data.inversions.out, {(row.shard, row.key) for row in chosen}))
    sources = {(s.shard, s.key): picture for s, picture in zip(stored, replay(networks, stored, True), strict=True)}
    prompts = {(s.shard, s.key): s.prompt for s in stored}
    rows = []
    for row in chosen:
        image = (row.shard, row.key)
        pictures = torch.stack([sources[image].cpu(), _read_picture(run, data, row)])
        captions = [f"{row.shard}/{row.key}: {prompts[image]}", row.edit_prompt or ""]
        rows.append((captions, pictures, ["rebuilt", row.name]))
    path = run.out / "preview.png"
    draw_rows(rows).save(path)
    return path


def _read_picture(run: EditRun, data: EditDataModule, row: EditRow) -> Tensor:
    """What is committed, [3, height, width] in [0, 1]."""
    ((_, picture),) = run.read(data.unit_of(row.shard, row.key), [row.id])
    return picture / 255
