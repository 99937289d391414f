"""Starting edit jobs, and looking at what they wrote."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from nti_batch.data.shards import work_units
from nti_batch.json_object import Json
from nti_batch.output.edits import open_edits, read_edited_images
from nti_batch.output.manifest_rows import EditRow


def edit(inverted: Path, out: Path, *more: str) -> list[str]:
    """The job's command."""
    return ["edit", f"--data.inversions={inverted}", f"--output.dir={out}", "--trainer.accelerator=cpu", *more]


def listed(path: Path, *edits: Mapping[str, Json]) -> str:
    """A flag with a JSONL of these edits, of shard a unless they name another."""
    path.write_text("".join(json.dumps({"shard": "a", **asked}) + "\n" for asked in edits))
    return f"--data.edits={path}"


def rows(out: Path) -> dict[tuple[str, str, str], EditRow]:
    """Rows of a run by shard, key and name; each is there once."""
    run = open_edits(out)
    units_per_shard = run.settings.units_per_shard
    found = [row for unit in work_units(run.shards, units_per_shard) for row in run.rows(unit)]
    named = {(row.shard, row.key, row.name): row for row in found}
    assert len(named) == len(found)
    return named


def edited_images(out: Path) -> dict[tuple[str, str, str], torch.Tensor]:
    """The committed images, uint8 [3, height, width]."""
    run = open_edits(out)
    units_per_shard = run.settings.units_per_shard
    ids = {row.id for row in rows(out).values()}
    found = [
        edited for unit in work_units(run.shards, units_per_shard) for edited in read_edited_images(run, unit, ids)
    ]
    return {(row.shard, row.key, row.name): pixels for row, pixels in found}


def difference(one: torch.Tensor, other: torch.Tensor) -> int:
    """Levels that a pixel differs by, at most."""
    return int((one.int() - other.int()).abs().max())
