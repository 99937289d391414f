"""The operations before the first cross-attention are those of the layers there, counted by hand."""

from functools import partial

import pytest
import torch

from nti_batch.benchmarks.full_size import random_unet
from nti_batch.benchmarks.shared_prefix import Shared, count_operations, evaluate, inputs_of, prefix_alone


def test_the_prefix_of_stable_diffusion_1_is_a_block_a_self_attention_and_a_query():
    unet = random_unet("float32", torch.device("meta")).eval()
    width, positions, time = 320, 64 * 64, 1280
    by_position = 2 * 9 * 4 * width + 2 * (2 * 9 * width**2) + (1 + 4 + 1) * 2 * width**2 + 2 * 2 * positions * width
    of_time = 2 * (width * time + time * time + time * width)
    with prefix_alone(unet):
        assert count_operations(partial(evaluate, unet, inputs_of(unet))) == positions * by_position + of_time


def test_the_share_of_a_job_leaves_out_the_evaluations_that_must_compute_it():
    work = Shared(prefix=1, forward=10, both=30)
    assert work.of_job(100, 0) == 0
    assert work.of_job(200, 100) == pytest.approx(100 / (100 * 10 + 100 * 30))
