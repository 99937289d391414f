"""Fixtures for tiny models with random weights, and the settings of hypothesis."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# the networks are tiny: more threads make them slower, above all on a busy machine
os.environ["OMP_NUM_THREADS"] = "1"
from helpers.object_store import make_bucket, s3_server, use_endpoint
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


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """Port of a local S3."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    with s3_server() as port:
        yield port


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Address of an empty bucket, with the copies of runs in the test's own folder."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    make_bucket(s3_port, name)
    use_endpoint(monkeypatch, s3_port)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"s3://{name}"
