"""Memory is counted as tensors come and go, and checkpointing keeps less of it."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nti_batch.benchmarks.computed_memory import TensorMemory, call_memory, family_memory
from nti_batch.benchmarks.full_size import FAMILIES, Shapes

TINY: dict[str, Any] = {"block_out_channels": (16, 32), "norm_num_groups": 4}
UNET = {
    "sample_size": 16,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
VAE = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def test_bytes_count_from_the_operation_to_the_end_of_the_tensor():
    with FakeTensorMode():
        weight = torch.ones(10)
        with TensorMemory([weight]) as memory:
            view, doubled = weight[:5], 2 * weight
            assert memory.present == 40, "a view of a weight takes no memory"
            third = doubled.double()
            assert memory.present == 120
            del doubled, view
            assert memory.present == 80
            del third
    assert memory.present == 0 and memory.peak == 120


def test_what_a_backward_pass_needs_is_kept_until_then():
    with FakeTensorMode():
        x, w = torch.ones(10, requires_grad=True), torch.ones(10)
        # exp keeps its result, and the product keeps nothing that is new
        found = call_memory(lambda: (x * w).exp(), [x, w], x)
        assert found.kept == 40 and found.peak > 40
        assert call_memory(lambda: (x * w).exp(), [x, w]).kept == 40


def test_checkpointing_keeps_a_part_of_the_activations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FAMILIES, "1.x", Shapes(unet=UNET | TINY, vae=VAE | TINY))
    found = family_memory("1.x", "bfloat16")
    assert 0 < found.checkpointed_kept < 0.5 * found.kept
    assert found.checkpointed_backward < found.backward
    assert 0 < found.forward < found.backward
    assert found.row("1.x").count("|") == 9
