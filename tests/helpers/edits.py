"""Starts edit jobs, and reads their output."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from nti_batch.data.shards import work_units
from nti_batch.json_object import Json
from nti_batch.output.edits import open_edits, read_edited_images
from nti_batch.output.manifest_rows import EditRow


def edit(inverted: Path, out: Path, *more: str) -> list[str]:
    """Return the arguments of an edit job."""
    return ["edit", f"--data.inversions={inverted}", f"--output.dir={out}", "--trainer.accelerator=cpu", *more]


def edits_flag(path: Path, *edits: Mapping[str, Json]) -> str:
    """Write edits to a JSONL file, and return the flag for it; their shard is a unless they name another."""
    path.write_text("".join(json.dumps({"shard": "a", **request}) + "\n" for request in edits))
    return f"--data.edits={path}"


def rows(out: Path) -> dict[tuple[str, str, str], EditRow]:
    """Read the rows of a run by shard, key and name; check that no edit has two."""
    run = open_edits(out)
    units_per_shard = run.settings.units_per_shard
    committed = [row for unit in work_units(run.shards, units_per_shard) for row in run.rows(unit)]
    by_name = {(row.shard, row.key, row.name): row for row in committed}
    assert len(by_name) == len(committed)
    return by_name


def edited_images(out: Path) -> dict[tuple[str, str, str], torch.Tensor]:
    """Read the committed images by shard, key and name, uint8 [3, height, width]."""
    run = open_edits(out)
    units_per_shard = run.settings.units_per_shard
    ids = {row.id for row in rows(out).values()}
    units = work_units(run.shards, units_per_shard)
    committed = [edited for unit in units for edited in read_edited_images(run, unit, ids)]
    return {(row.shard, row.key, row.name): pixels for row, pixels in committed}


def difference(one: torch.Tensor, other: torch.Tensor) -> int:
    """Compute the largest difference of two pixels, in levels."""
    return int((one.int() - other.int()).abs().max())
