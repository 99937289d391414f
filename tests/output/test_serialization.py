"""Each layout gives back the tensors bit for bit, and has a name."""

import dataclasses
import json
from dataclasses import replace

import pytest
import torch
from helpers.inversions import SETTINGS, inversion
from safetensors.torch import load, save
from torch import Tensor

from nti_batch.diffusion.rounding import Storage, round_embeddings, round_values
from nti_batch.output.serialization import LAYOUTS, decode_inversion, encode_inversion
from nti_batch.records import Inversion

STORAGES: tuple[Storage, ...] = ("float32", "float16", "compact")


def found(storage: Storage, moves: list[float], tokens: int = 77, dim: int = 64) -> Inversion:
    """Make embeddings as a job does: each differs from the last by a random change of the size in `moves`, rounded."""
    generator = torch.Generator().manual_seed(0)
    start = round_values(storage, torch.randn(tokens, dim, generator=generator))
    rows: list[Tensor] = []
    for size in moves:
        previous = rows[-1] if rows else start
        wanted = previous + size * torch.randn(tokens, dim, generator=generator)
        rows.append(round_embeddings(storage, wanted[None], previous[None])[0] if size else previous)
    noise = torch.randn(4, 16, 16, generator=generator)
    return dataclasses.replace(
        inversion("k"),
        start_embedding=start,
        null_embeddings=torch.stack(rows),
        noise_latents=noise,
        timesteps=list(range(len(moves))),
    )


def header(payload: bytes) -> dict[str, dict[str, str]]:
    """Parse the JSON at the beginning of safetensors bytes."""
    return json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])  # type: ignore[no-any-return]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("moves", [[0.1, 0.0, 0.03, 1e-3], [0.0, 0.0], [5.0]])
def test_embeddings_come_back_bit_for_bit_as_float32(storage: Storage, moves: list[float]):
    original = found(storage, moves)
    payload, metadata = encode_inversion(original, replace(SETTINGS, storage=storage))
    again = decode_inversion(payload, json.loads(json.dumps(metadata)))
    assert again.null_embeddings.dtype == torch.float32
    assert torch.equal(again.null_embeddings, original.null_embeddings)
    assert torch.equal(again.noise_latents, original.noise_latents)
    assert header(payload)["__metadata__"] == {"layout": LAYOUTS[storage]}


def test_the_smaller_layouts_are_smaller_and_a_repeated_row_costs_nothing():
    sizes = {
        s: len(encode_inversion(found(s, [0.05] * 4 + [0.0] * 6), replace(SETTINGS, storage=s))[0]) for s in STORAGES
    }
    assert sizes["float16"] < 0.52 * sizes["float32"]
    assert sizes["compact"] < 0.3 * sizes["float16"]
    longer = len(encode_inversion(found("compact", [0.05] * 4 + [0.0] * 40), replace(SETTINGS, storage="compact"))[0])
    assert longer <= sizes["compact"] + 8


def test_embeddings_that_were_not_rounded_are_not_stored():
    with pytest.raises(AssertionError, match="not rounded"):
        encode_inversion(found("float32", [0.1, 0.1]), replace(SETTINGS, storage="compact"))


def test_a_layout_of_a_newer_version_is_refused():
    payload, metadata = encode_inversion(found("float16", [0.1]), replace(SETTINGS, storage="float16"))
    newer = save(load(payload), metadata={"layout": "tiny-7"})
    with pytest.raises(ValueError, match=r"'k' cannot be read: the layout is 'tiny-7': a newer nti_batch wrote it"):
        decode_inversion(newer, metadata)
