"""Starting edit jobs, and looking at what they wrote."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from nti_batch.data.shards import work_units
from nti_batch.output.edits import EditRun
from nti_batch.output.manifest import EditRow, Json


def edit(inverted: Path, out: Path, *more: str) -> list[str]:
    """The job's command."""
    return ["edit", f"--data.inversions={inverted}", f"--output.dir={out}", "--trainer.accelerator=cpu", *more]


def listed(path: Path, *edits: Mapping[str, Json]) -> str:
    """A flag with a JSONL of these edits, of shard a if they do not say."""
    path.write_text("".join(json.dumps({"shard": "a", **asked}) + "\n" for asked in edits))
    return f"--data.edits={path}"


def rows(out: Path) -> dict[tuple[str, str, str], EditRow]:
    """Of a run, each named once."""
    run = EditRun(out)
    units_per_shard = run.settings()["data.units_per_shard"]
    assert isinstance(units_per_shard, int)
    found = [row for unit in work_units(run.shards(), units_per_shard) for row in run.rows(unit)]
    named = {(row.shard, row.key, row.name): row for row in found}
    assert len(named) == len(found)
    return named


def pictures(out: Path) -> dict[tuple[str, str, str], torch.Tensor]:
    """The committed pictures, uint8 [3, height, width]."""
    run = EditRun(out)
    units_per_shard = run.settings()["data.units_per_shard"]
    assert isinstance(units_per_shard, int)
    ids = {row.id for row in rows(out).values()}
    found = [edited for unit in work_units(run.shards(), units_per_shard) for edited in run.read(unit, ids)]
    return {(row.shard, row.key, row.name): picture for row, picture in found}


def difference(one: torch.Tensor, other: torch.Tensor) -> int:
    """Levels that a pixel differs by, at most."""
    return int((one.int() - other.int()).abs().max())
