"""Fixtures for tiny models with random weights, and the settings of hypothesis."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# the networks are tiny: more threads make them slower, above all on a busy machine
os.environ["OMP_NUM_THREADS"] = "1"
from helpers.tiny import ZERO_SNR, write_model, write_xl_model

for _name, _examples in {"suite": 200, "long": 5_000}.items():
    # no deadline: a busy machine is not a failure
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
    """Folder of a noise-predicting model for images of 16 x 16 pixels."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_v_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a v-prediction model for images of 16 x 16 pixels."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_zero_snr_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a v-prediction model with a schedule of zero terminal SNR."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-zero-snr", **ZERO_SNR)


@pytest.fixture(scope="session")
def tiny_xl_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Stable Diffusion XL model for images of 16 x 16 pixels."""
    return write_xl_model(tmp_path_factory.mktemp("models") / "tiny-xl")
