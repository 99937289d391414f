"""Calls in batches have the rows of one call, and shrink where the memory does not suffice."""

from itertools import count

import pytest
import torch
from torch import Tensor

from nti_batch.diffusion.batch_size import find_batch_size, in_batches


@pytest.mark.parametrize(("fits", "sizes"), [(8, [4, 4, 2]), (3, [4, 2, 2, 2, 2, 2]), (1, [4, 2, 1, 1] + [1] * 8)])
def test_rows_come_in_their_order_whatever_fits(fits: int, sizes: list[int]):
    calls = []

    def call(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        if len(rows) > fits:
            raise torch.OutOfMemoryError("no memory")
        return 2 * rows

    inputs = torch.arange(10.0)
    assert torch.equal(in_batches(call, inputs, 4), 2 * inputs)
    assert calls == sizes


def test_a_row_that_does_not_fit_is_an_error():
    def call(rows: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches(call, torch.ones(3), 2)


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        ({"gradient": 128, "none": 128, "vae": 128}, 128),
        ({"gradient": 4, "none": 128, "vae": 128}, 4),
        ({"gradient": 128, "none": 8, "vae": 128}, 8),
        ({"gradient": 128, "none": 128, "vae": 2}, 2),
    ],
)
def test_the_batch_size_that_is_found_fits_every_kind_of_call(
    fits: dict[str, int], expected: int, monkeypatch: pytest.MonkeyPatch
):
    clock = count()
    # every call takes as long
    monkeypatch.setattr("nti_batch.diffusion.batch_size.time.perf_counter", lambda: float(next(clock)))
    seen: list[tuple[str, int]] = []

    def allow(kind: str, images: int) -> None:
        seen.append((kind, images))
        if images > fits[kind]:
            raise torch.OutOfMemoryError("no memory")

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        allow("gradient" if torch.is_grad_enabled() else "none", len(latents))
        return latents * embeddings.mean()

    def use_vae(images: int) -> None:
        assert not torch.is_grad_enabled()
        allow("vae", images)

    inputs = torch.ones(4, 2, 2), torch.tensor(1), torch.ones(3, 5)
    assert find_batch_size(predict, *inputs, use_vae) == expected
    # the other kinds are called while the call with gradient waits for its backward pass
    assert seen[:3] == [("gradient", 1), ("none", 1), ("vae", 1)]
