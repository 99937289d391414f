"""A tiny Stable Diffusion with random weights, and shards to feed it."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# the networks are tiny: more threads are slower, and many times so where another process computes
os.environ["OMP_NUM_THREADS"] = "1"
from helpers.tiny import ZERO_SNR, write_model, write_xl_model

for _name, _examples in {"suite": 200, "long": 5_000}.items():
    # deadline: a busy machine is no failure, and what hangs is ended by the tests themselves
    settings.register_profile(
        _name,
        max_examples=_examples,
        derandomize=_name == "suite",
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a noise-predicting model for 16 x 16 pictures."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_v_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in v-prediction."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_zero_snr_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a schedule that ends in noise alone."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-zero-snr", **ZERO_SNR)


@pytest.fixture(scope="session")
def tiny_xl_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of Stable Diffusion XL."""
    return write_xl_model(tmp_path_factory.mktemp("models") / "tiny-xl")
