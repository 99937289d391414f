"""An inversion as two members of a tar: `<key>.safetensors` with its tensors, `<key>.json` with everything else."""

import dataclasses
import hashlib
import json
import tarfile
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from nti_batch.manifest import Json
from nti_batch.records import Inversion


@dataclass(frozen=True, slots=True, eq=False)
class StoredInversion:
    """An inversion read back from a run."""

    shard: str
    key: str
    prompt: str
    noise_latents: Tensor
    """z_T, [channels, height, width] float32."""

    null_embeddings: Tensor
    """[T, tokens, dim] float32; row 0 belongs to the noisiest timestep."""

    metadata: dict[str, Json]
    """The `.json` member: sizes, model, settings, losses, PSNR, work."""


def pack(inversion: Inversion, settings: dict[str, Json]) -> tuple[bytes, dict[str, Json]]:
    """The two members of an inversion: safetensors bytes, and metadata with their checksum and what made them."""
    tensors = {"noise_latents": inversion.noise_latents, "null_embeddings": inversion.null_embeddings}
    payload = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    kept = {f.name for f in dataclasses.fields(inversion)} - {"unit", *tensors}
    metadata: dict[str, Json] = {"shard": inversion.unit.shard, "settings": settings}
    metadata.update({name: getattr(inversion, name) for name in sorted(kept)})
    metadata.update(finished=time.time(), sha256=hashlib.sha256(payload).hexdigest())
    return payload, metadata


def unpack(payload: bytes, metadata: dict[str, Json]) -> StoredInversion:
    """The opposite of `pack`."""
    tensors = load(payload)
    return StoredInversion(
        shard=str(metadata["shard"]),
        key=str(metadata["key"]),
        prompt=str(metadata["prompt"]),
        noise_latents=tensors["noise_latents"],
        null_embeddings=tensors["null_embeddings"],
        metadata=metadata,
    )


def member_name(key: str) -> str:
    """A key as a tar member's name that stays in its folder: everything special, the dot too, becomes %XX."""
    return urllib.parse.quote(key, safe="").replace(".", "%2E")


def read_members(part: Path) -> Iterator[tuple[bytes, dict[str, Json]]]:
    """The inversions of a part in order, in their stored form, each checked against its checksum.

    Raises:
        ValueError: Where a member is damaged or missing; those before it have been yielded.
    """
    payloads: dict[str, bytes] = {}
    try:
        with tarfile.open(part, "r:") as tar:
            for member in tar:
                stem, _, kind = member.name.rpartition(".")
                stream = tar.extractfile(member)
                content = stream.read() if stream else b""
                if kind == "json":
                    payload, metadata = payloads.pop(stem), json.loads(content)
                    if hashlib.sha256(payload).hexdigest() != metadata["sha256"]:
                        raise ValueError(f"the tensors of {metadata['key']!r} do not have the checksum in its .json")
                    yield payload, metadata
                else:
                    payloads[stem] = content
    except (tarfile.TarError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{part} is damaged: {error}") from error
    if payloads:
        raise ValueError(f"{part} is damaged: no .json for {', '.join(payloads)}")
