"""Inversions in the form that other programs take.

`diffusers` is what `NullTextPipeline`, of diffusers' examples/community/pipeline_null_text_inversion.py, returns from
`invert` and takes in its call, under the names of its arguments; and beside it as JSON what the call needs besides:

    FOLDER/<shard>/<key>.safetensors   float32: inverted_latent [1, channels, h, w],
                                       uncond_embeddings [T, 1, tokens, dim], the noisiest timestep first;
                                       of XL uncond_pooled_embeddings [T, 1, pooled dim], too
    FOLDER/<shard>/<key>.json          written last: an image is exported when it has one
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from nti_batch.files import atomic_write, translate_os_errors
from nti_batch.json_object import Json
from nti_batch.output.inversions import InversionRun, read_part
from nti_batch.output.manifest import InversionRow, Manifest, member_name
from nti_batch.output.serialization import StoredInversion

_LONGEST_NAME = 200
"""In bytes; file systems take 255, endings included."""


@dataclass(slots=True)
class Exported:
    """What became of the images of a run."""

    written: int = 0
    there: int = 0
    """Exported earlier, to the same folder."""

    failed: int = 0
    """Without an inversion, and so left out."""

    damage: list[str] = field(default_factory=list)
    """Parts that could not be read, and why; what stands in the others is exported."""


def diffusers_tensors(inversion: StoredInversion) -> dict[str, Tensor]:
    """The tensors of `NullTextPipeline` under the names of its arguments: the one place that knows its layout."""
    embeddings, pooled = inversion.split_null_embeddings()
    tensors = {
        "inverted_latent": inversion.noise_latents[None].contiguous(),
        "uncond_embeddings": embeddings[:, None].contiguous(),
    }
    return tensors if pooled is None else {**tensors, "uncond_pooled_embeddings": pooled[:, None].contiguous()}


def scheduler_settings(timesteps: list[Json]) -> dict[str, Json]:
    """What diffusers' DDIMScheduler must be told, besides the model's own settings, to go through these timesteps."""
    if timesteps[-1] == 1:
        return {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    return {"timestep_spacing": "trailing", "clip_sample": False}


def choose_ids(
    run: InversionRun, shards: Collection[str] | None, keys: Collection[str] | None
) -> set[tuple[str, str]] | None:
    """The committed images that are of these shards and have these keys; None, which is all, if neither is given.

    Raises:
        ValueError: If it is no run, or has nothing of one of them.
    """
    if shards is None and keys is None:
        return None
    rows = (row for path in run.all_manifests() for row in Manifest.read(path, InversionRow).rows if row.key)
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
            raise ValueError(f"{str(run.out)!r} has no such {kind}: {', '.join(map(repr, unknown))}")
    return chosen


def export_run(run: InversionRun, folder: Path, only: Collection[tuple[str, str]] | None = None) -> Exported:
    """Write committed inversions into a folder, those that are not there yet; one part is in work at a time.

    Args:
        run: Of any method that rebuilds an image by embeddings.
        folder: Made if it is not there.
        only: Image ids (shard, key); all if None.

    Raises:
        ValueError: If it is no run, or one of direct inversion.
        OutputError: If the folder cannot be written.
    """
    if run.settings.inversion.method == "direct":
        raise ValueError(
            f"{str(run.out)!r} was inverted with --model.method=direct, whose embeddings do not rebuild an image: "
            "export a run of another method, or read its pivot with `nti_batch.read_inversions`"
        )
    exported = Exported()
    for manifest in run.all_manifests():
        try:
            _export_part(manifest, folder, only, exported)
        except ValueError as error:
            exported.damage.append(str(error))
    return exported


def _export_part(manifest: Path, folder: Path, only: Collection[tuple[str, str]] | None, exported: Exported) -> None:
    rows = [row for row in Manifest.read(manifest, InversionRow).rows if only is None or (row.shard, row.key) in only]
    exported.failed += sum(row.status == "failed" and row.key != "" for row in rows)
    done = [row for row in rows if row.status == "done"]
    open_ids = {(row.shard, row.key) for row in done if not _is_there(folder, row)}
    exported.there += len(done) - len(open_ids)
    for inversion in read_part(manifest, open_ids):
        path = _path(folder, inversion.shard, inversion.key)
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, save(diffusers_tensors(inversion)))
            atomic_write(path.with_suffix(".json"), json.dumps(_call(inversion), indent=2) + "\n")
        exported.written += 1


def _is_there(folder: Path, row: InversionRow) -> bool:
    """Whether an earlier export has written this very inversion."""
    path = _path(folder, row.shard, row.key)
    try:
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return path.exists() and told["inversion_sha256"] == row.sha256
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _call(inversion: StoredInversion) -> dict[str, Json]:
    """What a pipeline must be told besides the tensors, under diffusers' names where it has some."""
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
    """Its own for each image: no name goes up a folder or into another one."""
    return folder / _file_name(shard) / f"{_file_name(key)}.safetensors"


def _file_name(name: str) -> str:
    quoted = member_name(name)
    if len(quoted) <= _LONGEST_NAME:
        return quoted
    # quoted names hold no plus
    return f"{quoted[:_LONGEST_NAME]}+{hashlib.sha256(name.encode()).hexdigest()[:32]}"
