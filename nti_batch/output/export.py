"""Exports inversions in the form that other programs take.

The form is diffusers': `invert` of `NullTextPipeline` (examples/community/pipeline_null_text_inversion.py) returns
these tensors, and its call takes them, under the names of its arguments. A JSON has what the call needs besides.

    FOLDER/<shard>/<key>.safetensors   float32: inverted_latent [1, channels, h, w],
                                       uncond_embeddings [T, 1, tokens, dim], the noisiest timestep first;
                                       for XL also uncond_pooled_embeddings [T, 1, pooled dim]
    FOLDER/<shard>/<key>.json          written last; an image is exported once it exists
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from nti_batch.files import atomic_write, translate_os_errors
from nti_batch.json_object import Json
from nti_batch.lock import lock_folder
from nti_batch.output.inversions import InversionRun, read_part
from nti_batch.output.manifest_rows import InversionRow, member_name
from nti_batch.output.run_folder import AnyRun
from nti_batch.output.serialization import StoredInversion
from nti_batch.output.stored_part import StoredPart

_MAX_NAME_BYTES = 200
"""Bytes of a file name without extensions; file systems take 255 in all."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Counts of the images of a run, or of a part of it, by their outcome."""

    written: int = 0
    existing: int = 0
    """Images that an earlier export has written to the same folder."""

    failed: int = 0
    """Images that have no inversion, and are left out."""

    damage: tuple[str, ...] = ()
    """An error for each part that could not be read; the inversions before the damage are exported."""

    def __add__(self, other: "Exported") -> "Exported":
        """Sum up two parts."""
        return Exported(
            written=self.written + other.written,
            existing=self.existing + other.existing,
            failed=self.failed + other.failed,
            damage=self.damage + other.damage,
        )


def diffusers_tensors(inversion: StoredInversion) -> dict[str, Tensor]:
    """Lay out the tensors as `NullTextPipeline` takes them, under the names of its arguments."""
    embeddings, pooled = inversion.split_null_embeddings()
    tensors = {
        "inverted_latent": inversion.noise_latents[None].contiguous(),
        "uncond_embeddings": embeddings[:, None].contiguous(),
    }
    return tensors if pooled is None else {**tensors, "uncond_pooled_embeddings": pooled[:, None].contiguous()}


def scheduler_settings(timesteps: list[Json]) -> dict[str, Json]:
    """Return the settings that make diffusers' DDIMScheduler visit these timesteps, beside the model's own settings."""
    if timesteps[-1] == 1:
        return {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    return {"timestep_spacing": "trailing", "clip_sample": False}


def choose_ids(
    run: AnyRun, shards: Collection[str] | None, keys: Collection[str] | None
) -> set[tuple[str, str]] | None:
    """Choose committed images by shard and by key.

    Returns:
        Shard and key of each chosen image; None, which stands for all, if neither shards nor keys are given.

    Raises:
        ValueError: If the folder is no run, or has no image of a given shard or key.
    """
    if shards is None and keys is None:
        return None
    rows = (row for part in run.all_parts() for row in part.read().rows if row.key)
    chosen = {
        (row.shard, row.key)
        for row in rows
        if (shards is None or row.shard in shards) and (keys is None or row.key in keys)
    }
    for kind, asked, found in (
        ("shard", shards, {shard for shard, _ in chosen}),
        ("key", keys, {key for _, key in chosen}),
    ):
        if unknown := sorted(set(asked or ()) - found):
            raise ValueError(f"{run.files.address!r} has no such {kind}: {', '.join(map(repr, unknown))}")
    return chosen


def export_run(run: InversionRun, folder: Path, only: Collection[tuple[str, str]] | None = None) -> Exported:
    """Export the committed inversions that the folder does not have yet, part by part.

    Args:
        run: A run of any method whose embeddings rebuild the image.
        folder: Folder to write; it is created if it does not exist.
        only: Shard and key of each image to export; None for all.

    Raises:
        ValueError: If it is no run, or one whose embeddings do not rebuild the images, or the folder cannot be written.
        OutputError: If a file cannot be written.
        UnitInUseError: If another export writes to it.
    """
    settings = run.settings.inversion
    if settings.keeps_pivot:
        raise ValueError(
            f"{run.files.address!r} was inverted with --model.method={settings.method}, whose embeddings do not "
            "rebuild an image: export a run of another method, or read its pivot with `nti_batch.read_inversions`"
        )
    with lock_folder(folder, "export.lock", "--output"):
        parts = (_export_part(part, folder, only) for part in run.all_parts())
        return sum(parts, Exported())


def _export_part(part: StoredPart[InversionRow], folder: Path, only: Collection[tuple[str, str]] | None) -> Exported:
    try:
        rows = part.read().rows
    except ValueError as error:
        return Exported(damage=(str(error),))
    chosen = [row for row in rows if only is None or (row.shard, row.key) in only]
    done = [row for row in chosen if row.status == "done"]
    missing = {(row.shard, row.key) for row in done if not _is_exported(folder, row)}
    written, damage = 0, list[str]()
    try:
        for inversion in read_part(part, missing):
            _write(folder, inversion)
            written += 1
    except ValueError as error:
        damage.append(str(error))
    failed = sum(row.status == "failed" and row.key != "" for row in chosen)
    return Exported(written, len(done) - len(missing), failed, tuple(damage))


def _write(folder: Path, inversion: StoredInversion) -> None:
    path = _path(folder, inversion.shard, inversion.key)
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(diffusers_tensors(inversion)))
        atomic_write(path.with_suffix(".json"), json.dumps(_call(inversion), indent=2) + "\n")


def _is_exported(folder: Path, row: InversionRow) -> bool:
    """Return whether an earlier export has written this very inversion."""
    path = _path(folder, row.shard, row.key)
    try:
        call = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return path.exists() and call["inversion_sha256"] == row.sha256
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _call(inversion: StoredInversion) -> dict[str, Json]:
    """Return the arguments of a pipeline's call beside the tensors, under diffusers' names where there are any."""
    metadata, settings = inversion.metadata, inversion.settings
    source, timesteps = settings.source, metadata["timesteps"]
    assert isinstance(timesteps, list)
    return {
        "shard": inversion.shard,
        "key": inversion.key,
        "prompt": inversion.prompt,
        "guidance_scale": settings.inversion.guidance_scale,
        "num_inference_steps": len(inversion.null_embeddings),
        "timesteps": timesteps,
        "height": metadata["height"],
        "width": metadata["width"],
        "model": str(source.folder.resolve()) if source.folder else source.name,
        "revision": source.revision,
        "variant": source.variant,
        "scheduler": scheduler_settings(timesteps),
        "inversion_sha256": metadata["sha256"],
    }


def _path(folder: Path, shard: str, key: str) -> Path:
    """Path of an image's tensors; it is unique, and no name leads out of the shard's folder."""
    return folder / _file_name(shard) / f"{_file_name(key)}.safetensors"


def _file_name(name: str) -> str:
    quoted = member_name(name)
    if len(quoted) <= _MAX_NAME_BYTES:
        return quoted
    # quoted names hold no plus, so that no other name ends like this
    return f"{quoted[:_MAX_NAME_BYTES]}+{hashlib.sha256(name.encode()).hexdigest()[:32]}"
