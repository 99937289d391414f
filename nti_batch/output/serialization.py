"""An inversion as two members of a tar: `<key>.safetensors` with its tensors, `<key>.json` with everything else.

The header of the safetensors names the layout of the tensors, under `layout`:

    float32-1   noise_latents float32;  null_embeddings [T, tokens, dim] float32
    float16-1   noise_latents float32;  null_embeddings [T, tokens, dim] float16
    compact-2   noise_latents float32;  start [tokens, dim] float16
                moved [M] int64: rows of null_embeddings that differ from the row before, or from `start`
                scales [M] float32
                levels uint8: a zstd frame of [M, tokens, dim] int8;  row = row before + scale * level
    compact-1   the same with a zlib stream, which takes ten times as long to make; it is read, and not written

Direct and edit-friendly DDPM inversion add pivot [T, channels, height, width] to each: float32 in the first, float16 in
the others.
"""

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nti_batch.diffusion.pooled_embedding import split_pooled
from nti_batch.diffusion.rounding import Storage, split_change
from nti_batch.json_object import Json, JsonObject
from nti_batch.output.format_version import format_versions
from nti_batch.output.manifest_rows import Metadata
from nti_batch.records import Inversion
from nti_batch.settings import InversionRunSettings

MAX_TENSOR_BYTES = 1 << 28
"""Largest tensor of an inversion, in float32: 999 steps of Stable Diffusion 1.5, or 400 of XL."""


STREAM_ERRORS = (SafetensorError, zstandard.ZstdError, zlib.error)

LAYOUTS: Mapping[Storage, str] = {"float32": "float32-1", "float16": "float16-1", "compact": "compact-2"}
"""The layout that is written for each storage."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredInversion:
    """An inversion read back from a run."""

    shard: str
    key: str
    prompt: str
    noise_latents: Tensor
    """z_T, [channels, height, width] float32."""

    null_embeddings: Tensor
    """[T, tokens, dim] float32; row 0 belongs to the noisiest timestep. In Stable Diffusion XL the pooled embedding is
    one more token: see `split_null_embeddings`."""

    metadata: Metadata
    """The `.json` member: sizes, model, settings, losses, PSNR, work."""

    pivot: Tensor | None = None
    """z*_{T-1} ... z*_0 of direct inversion, or x_{T-1} ... x_0 of edit-friendly DDPM inversion, [T, channels, height,
    width] float32; None with another method."""

    pixels: Tensor | None = None
    """Input image, uint8 [3, height, width], cropped and resized as it was inverted. Set by `InversionDataset`."""

    @property
    def settings(self) -> InversionRunSettings:
        """Settings of the run that made the inversion.

        Raises:
            ValueError: If the metadata is damaged.
        """
        return InversionRunSettings.from_json(
            JsonObject(self.metadata, f"the .json of {self.key!r}").section("settings")
        )

    def split_null_embeddings(self) -> tuple[Tensor, Tensor | None]:
        """Embeddings of the tokens, [T, tokens, dim], and pooled embeddings, [T, pooled dim], if the family has any."""
        pooled_dim = self.metadata.get("pooled_dim", 0)
        assert isinstance(pooled_dim, int)
        return split_pooled(self.null_embeddings, pooled_dim) if pooled_dim else (self.null_embeddings, None)


def pack_tensors(
    storage: Storage, noise_latents: Tensor, start_embedding: Tensor, null_embeddings: Tensor, pivot: Tensor | None
) -> bytes:
    """Safetensors bytes in the layout of a storage. The tensors must be rounded to it; they may be on any device."""
    match storage:
        case "compact":
            tensors = _compact(start_embedding.cpu(), null_embeddings.cpu())
        case "float16":
            tensors = {"null_embeddings": null_embeddings.half()}
        case "float32":
            tensors = {"null_embeddings": null_embeddings}
    tensors["noise_latents"] = noise_latents
    if pivot is not None:
        tensors["pivot"] = pivot if storage == "float32" else pivot.half()
    return save({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata={"layout": LAYOUTS[storage]})


@dataclass(frozen=True, slots=True)
class StoredSize:
    """Size of a record on disk."""

    bytes: int
    basis: str
    """Basis of the number, such as 'so far' or 'at most'."""


def stored_size(storage: Storage, latents: Sequence[int], embeddings: Sequence[int], has_pivot: bool) -> StoredSize:
    """Size of the tensors of an inversion in a storage, before there is one.

    Args:
        storage: Form of the null embeddings.
        latents: Shape of z_T, [channels, height, width].
        embeddings: Shape of the null embeddings, [T, tokens, dim].
        has_pivot: Whether the pivot is stored: `keeps_pivot` of the method.
    """
    steps, tokens, dim = embeddings
    value = 4 if storage == "float32" else 2
    total = 4 * prod(latents) + (steps * prod(latents) * value if has_pivot else 0)
    if storage == "compact":
        # a start in float16, an index and a scale for each timestep, and levels of a byte, which zstd makes smaller
        return StoredSize(total + 2 * tokens * dim + 12 * steps + prod(embeddings), "at most")
    return StoredSize(total + prod(embeddings) * value, f"in {storage}")


def encode_inversion(inversion: Inversion, settings: InversionRunSettings) -> tuple[bytes, Metadata]:
    """The two members of an inversion: safetensors bytes, and metadata with their checksum and the run's settings."""
    payload = pack_tensors(
        settings.storage,
        inversion.noise_latents,
        inversion.start_embedding,
        inversion.null_embeddings,
        inversion.pivot,
    )
    metadata: Metadata = {
        "shard": inversion.unit.shard,
        "key": inversion.key,
        "prompt": inversion.prompt,
        "prompt_truncated": inversion.prompt_truncated,
        "width": inversion.width,
        "height": inversion.height,
        "timesteps": list(inversion.timesteps),
        "inner_steps": list(inversion.inner_steps),
        "losses": list(inversion.losses),
        "psnr_vae": inversion.psnr_vae,
        "psnr": inversion.psnr,
        "forwards": inversion.forwards,
        "backwards": inversion.backwards,
        "seconds": inversion.seconds,
        "pooled_dim": inversion.pooled_dim,
        "input_sha256": inversion.input_sha256,
        "settings": settings.to_json(),
        "finished": time.time(),
        "sha256": hashlib.sha256(payload).hexdigest(),
        **format_versions(),
    }
    return payload, metadata


def unpack_tensors(payload: bytes, num_steps: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Read what `pack_tensors` wrote: noise latents, null embeddings and pivot, float32 in every layout.

    Raises:
        ValueError: If the layout is not known here.
    """
    tensors = load(payload)
    match layout := _layout(payload):
        case "float32-1" | "float16-1":
            null_embeddings = _to_float(tensors["null_embeddings"])
        case "compact-1":
            null_embeddings = _expand(tensors, num_steps, _inflate)
        case "compact-2":
            null_embeddings = _expand(tensors, num_steps, _decompress)
        case _:
            raise ValueError(f"the layout is {layout!r}: a newer nti_batch wrote it; update this one")
    return tensors["noise_latents"], null_embeddings, _to_float(tensors["pivot"]) if "pivot" in tensors else None


def _to_float(tensor: Tensor) -> Tensor:
    """A tensor in float32.

    Raises:
        ValueError: If it is too large.
    """
    check_size(tensor.shape)
    return tensor.float()


def check_size(shape: Sequence[int]) -> None:
    """Check the size of a tensor in float32.

    Raises:
        ValueError: If it is too large.
    """
    if (size := 4 * prod(shape)) > MAX_TENSOR_BYTES:
        raise ValueError(f"a tensor of the shape {list(shape)} takes {size:,} bytes, allowed: {MAX_TENSOR_BYTES:,}")


def decode_inversion(payload: bytes, metadata: Metadata) -> StoredInversion:
    """Read what `encode_inversion` wrote.

    Raises:
        ValueError: If the layout is not known here, or the metadata is damaged.
    """
    try:
        num_steps = len(_timesteps(metadata))
        noise_latents, null_embeddings, pivot = unpack_tensors(payload, num_steps)
        if null_embeddings.ndim != 3 or len(null_embeddings) != num_steps or noise_latents.ndim != 3:
            raise ValueError(f"its tensors do not have the shapes of an inversion in {num_steps} steps")
        return StoredInversion(
            shard=str(metadata["shard"]),
            key=str(metadata["key"]),
            prompt=str(metadata["prompt"]),
            noise_latents=noise_latents,
            null_embeddings=null_embeddings,
            metadata=metadata,
            pivot=pivot,
        )
    # RuntimeError: torch's for shapes that do not fit each other
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError, *STREAM_ERRORS) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{metadata.get('key')!r} cannot be read: {reason}") from error


def _timesteps(metadata: Metadata) -> list[Json]:
    """Timesteps of an inversion, the noisiest first.

    Raises:
        ValueError: If they, or the width of the pooled embedding, are damaged.
    """
    timesteps, pooled = metadata["timesteps"], metadata.get("pooled_dim", 0)
    if not (isinstance(timesteps, list) and timesteps and all(type(t) is int for t in timesteps)):
        raise ValueError("its timesteps are no list of integers")
    if not (type(pooled) is int and pooled >= 0):
        raise ValueError(f"its pooled_dim is {pooled!r}")
    return timesteps


def _layout(payload: bytes) -> str | None:
    """Layout in the header of safetensors bytes: 8 bytes with its length, then JSON."""
    header: dict[str, dict[str, str]] = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
    return header.get("__metadata__", {}).get("layout")


def _compact(start: Tensor, null_embeddings: Tensor) -> dict[str, Tensor]:
    """Tensors of the layout compact-2, for embeddings that were rounded to it."""
    previous = torch.cat([start[None], null_embeddings[:-1]])
    scales, levels = split_change(null_embeddings, previous)
    assert torch.equal(previous + scales * levels, null_embeddings), (
        "embeddings that were not rounded as they were found"
    )
    moved = levels.flatten(1).any(1).nonzero()[:, 0]
    stream = zstandard.ZstdCompressor(level=1).compress(levels[moved].to(torch.int8).numpy().tobytes())
    return {
        "start": start.half(),
        "moved": moved,
        "scales": scales[moved, 0, 0],
        "levels": torch.from_numpy(np.frombuffer(stream, np.uint8).copy()),
    }


def _expand(tensors: dict[str, Tensor], num_steps: int, decompress: Callable[[bytes, int], bytes]) -> Tensor:
    """Null embeddings from what `_compact` gave, [T, tokens, dim] float32."""
    null_embedding = tensors["start"].float()
    check_size((num_steps, *null_embedding.shape))
    size = len(tensors["moved"]) * null_embedding.numel()
    stream = tensors["levels"].numpy().tobytes()
    if len(tensors["moved"]) > num_steps or len(stream := decompress(stream, size)) != size:
        raise ValueError(f"levels do not hold the {size:,} bytes of {len(tensors['moved'])} rows")
    levels = torch.from_numpy(np.frombuffer(stream, np.int8).copy()).view(-1, *null_embedding.shape)
    changes = dict(zip(tensors["moved"].tolist(), tensors["scales"].view(-1, 1, 1) * levels, strict=True))
    rows = []
    for i in range(num_steps):
        null_embedding = null_embedding + changes[i] if i in changes else null_embedding
        rows.append(null_embedding)
    return torch.stack(rows)


def _decompress(stream: bytes, size: int) -> bytes:
    """The content of a zstd frame; nothing if its size is another, which may be huge."""
    if zstandard.frame_content_size(stream) != size:
        return b""
    return zstandard.ZstdDecompressor().decompress(stream)


def _inflate(stream: bytes, size: int) -> bytes:
    """The content of a zlib stream; one byte more shows a longer one, which may have no end."""
    return zlib.decompressobj().decompress(stream, size + 1)
