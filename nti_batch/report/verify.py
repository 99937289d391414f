"""Whether a run is what it says: manifests against parts, against the input, and replayed from the files."""

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nti_batch.data.samples import read_inputs
from nti_batch.data.shard_reader import read_keys
from nti_batch.editing.reconstruct import replay
from nti_batch.models.load import load_model
from nti_batch.output.inversions import InversionRun, read_inversions
from nti_batch.output.manifest import AnyRow, Json, Manifest
from nti_batch.output.part import read_members
from nti_batch.output.run import OutputRun
from nti_batch.output.serialization import StoredInversion, unpack
from nti_batch.records import WorkUnit
from nti_batch.report.preview import choose_rows
from nti_batch.scores.metrics import psnr

REPLAY_TOLERANCE = 0.05
"""In dB; a replay on the same kind of device is closer by far."""


TWICE = "is committed twice"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    where: str
    """A file, or an image as 'shard/key'."""

    what: str


def verify_run(run: InversionRun, units: Sequence[WorkUnit], recompute: int) -> Iterator[Finding]:
    """Everything that is wrong with a run, as it is found.

    Args:
        run: The output folder.
        units: All its work units, in the shards as they are to be had now.
        recompute: Inversions to replay and compare with the PSNR that they recorded, with the model of the run.

    Raises:
        ValueError: If `recompute` needs what is not there.
    """
    for _, of_shard in groupby(units, key=lambda unit: unit.shard):
        yield from _check_shard(run, list(of_shard))
    yield from unexpected_files(run, units)
    if recompute:
        yield from _replayed(run, units, recompute)


def _check_shard(run: InversionRun, units: list[WorkUnit]) -> Iterator[Finding]:
    shard, committed = units[0].shard, set[str]()
    for unit in units:
        rows = yield from check_parts(run, unit, lambda payload, data: _wrong(unpack(payload, data), run.settings()))
        for row in rows:
            if row.key and row.key in committed:
                yield Finding(f"{shard}/{row.key}", TWICE)
            committed.add(row.key)
        try:
            if run.is_complete(unit) and run.images_when_complete(unit) != len(rows):
                yield Finding(unit.name, f"is marked complete, and its manifests hold {len(rows)} images")
        except ValueError as error:
            yield Finding(unit.name, str(error))
    keys, faults = read_keys(units[0].url)
    for key in keys:
        if key not in committed:
            yield Finding(f"{shard}/{key}", "is in the input and not committed")
    if not faults:
        for key in sorted(committed - set(keys) - {""}):
            yield Finding(f"{shard}/{key}", "is committed and not in the input")
    elif "" not in committed:
        yield Finding(units[0].url, f"cannot be read to its end: {faults[0]}")


def check_parts(
    run: OutputRun[Any, AnyRow], unit: WorkUnit, wrong: Callable[[bytes, dict[str, Json]], Iterator[str]]
) -> Generator[Finding, None, list[AnyRow]]:
    """Findings in the parts of a work unit; its rows are what the generator returns.

    Args:
        run: The output folder.
        unit: The work unit.
        wrong: What is wrong with a record, by its two members.
    """
    rows: list[AnyRow] = []
    for path in run.manifests(unit):
        try:
            manifest = Manifest.read(path, run.row_type)
        except ValueError as error:
            yield Finding(str(path), str(error))
            continue
        yield from _check_part(manifest, path.with_suffix(".tar"), wrong)
        rows += manifest.rows
    for row in rows:
        if row.shard != unit.shard:
            yield Finding(f"{row.shard}/{row.id}", f"is in a manifest of shard {unit.shard!r}")
    return rows


def _check_part(
    manifest: Manifest[AnyRow], part: Path, wrong: Callable[[bytes, dict[str, Json]], Iterator[str]]
) -> Iterator[Finding]:
    done = {row.id: row for row in manifest.rows if row.status == "done"}
    if not done:
        return
    try:
        manifest.check_part(part)
    except ValueError as error:
        yield Finding(str(part), str(error))
    try:
        for payload, metadata in read_members(part):
            told = type(manifest.rows[0]).of_metadata(metadata)
            row = done.pop(told.id, None)
            if row is None or replace(told, json_sha256=row.json_sha256) != row:
                yield Finding(str(part), f"holds {told.id!r}, and its manifest says something else of it")
            for what in wrong(payload, metadata):
                yield Finding(f"{told.shard}/{told.id}", what)
    except (OSError, ValueError) as error:
        yield Finding(str(part), str(error))
    else:
        for lacking in done:
            yield Finding(str(part), f"lacks {lacking!r}, which its manifest names")


def _wrong(stored: StoredInversion, settings: dict[str, Json]) -> Iterator[str]:
    if stored.metadata.get("settings") != settings:
        yield "was made with other settings than the run's"
    timesteps = stored.metadata["timesteps"]
    assert isinstance(timesteps, list)
    if stored.null_embeddings.ndim != 3 or len(stored.null_embeddings) != len(timesteps):
        shape = tuple(stored.null_embeddings.shape)
        yield f"null_embeddings have the shape {shape}, not [{len(timesteps)}, tokens, dim]"
    tensors: dict[str, Tensor] = {
        "null_embeddings": stored.null_embeddings,
        "noise_latents": stored.noise_latents,
    }
    if stored.pivot is not None:
        tensors["pivot"] = stored.pivot
    expected = (len(timesteps), *stored.noise_latents.shape) if settings.get("model.method") == "direct" else None
    found = tuple(stored.pivot.shape) if stored.pivot is not None else None
    if found != expected:
        yield f"the pivot has the shape {found}, not {expected}"
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            yield f"{name} are {tensor.dtype}, not float32"
        if not tensor.isfinite().all():
            yield f"{name} hold numbers that are not finite"


def unexpected_files(run: OutputRun[Any, Any], units: Sequence[WorkUnit]) -> Iterator[Finding]:
    """Files that belong to no work unit, and the leavings of a job that died."""
    names = {unit.name for unit in units}
    for path in sorted(run.folder.iterdir()):
        found = re.fullmatch(r"(.+?)(?:\.\d{5,}\.(tar|jsonl))?(?:\.(complete|lock|salvage))?(\.tmp)?", path.name)
        if found is None or found[1] not in names:
            yield Finding(str(path), "belongs to no work unit of these shards")
        elif path.suffix == ".salvage" or path.name.endswith(".tar.tmp") or _is_uncommitted(path):
            yield Finding(str(path), "is not committed: a job is at it, or has died; run the job again")


def _is_uncommitted(path: Path) -> bool:
    return path.suffix == ".tar" and not path.with_suffix(".jsonl").exists()


def _replayed(run: InversionRun, units: Sequence[WorkUnit], count: int) -> Iterator[Finding]:
    settings = run.settings()
    if missing := [name for name in ("data.height", "data.width", "data.caption") if name not in settings]:
        raise ValueError(f"{run.run_file} is damaged: it lacks {', '.join(missing)}")
    height, width = settings["data.height"], settings["data.width"]
    assert isinstance(height, int) and isinstance(width, int)
    networks = load_model(settings)
    ids = [(row.shard, row.key) for row in choose_rows(run, units, count)]
    inputs = read_inputs(units, str(settings["data.caption"]), height, width, ids)
    for shard, key in sorted(set(ids) - set(inputs)):
        yield Finding(f"{shard}/{key}", "is committed, and its input cannot be read")
    for stored in read_inversions(run.out, inputs):
        picture = replay(networks, [stored], guided=True).cpu()
        reached = psnr(picture, inputs[stored.shard, stored.key].pixels[None] / 255).item()
        recorded = stored.metadata["psnr"]
        assert isinstance(recorded, float)
        if abs(reached - recorded) > REPLAY_TOLERANCE:
            yield Finding(
                f"{stored.shard}/{stored.key}", f"replays to {reached:.3f} dB, and recorded {recorded:.3f} dB"
            )
