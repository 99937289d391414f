"""A tiny Stable Diffusion with random weights, and shards to feed it."""

import os
from pathlib import Path

import pytest

# the networks are tiny: more threads are slower, and many times so where another process computes
os.environ["OMP_NUM_THREADS"] = "1"
from tiny import write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a noise-predicting model for 16 x 16 pictures."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_v_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in v-prediction."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-v", prediction_type="v_prediction")
