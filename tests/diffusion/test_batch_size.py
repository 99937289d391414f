"""Calls in batches have the rows of one call, and shrink where the memory does not suffice."""

import pytest
import torch
from torch import Tensor

from nti_batch.diffusion.batch_size import in_batches


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
