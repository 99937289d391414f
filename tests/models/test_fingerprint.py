"""What a model's fingerprint depends on."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from nti_batch.models.fingerprint import check_fingerprint, model_fingerprint
from nti_batch.models.source import EMBEDDED_MODEL, ModelSource

FILES = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/merges.txt": b"a b",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"weights",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _of(folder: Path, variant: str | None = None, config: str | None = None) -> str | None:
    return model_fingerprint(ModelSource(str(folder), variant=variant, config=config))


def test_it_is_the_hash_of_the_sorted_list_of_hashes(tmp_path: Path):
    listed = "".join(f"{name} {hashlib.sha256(FILES[name]).hexdigest()}\n" for name in sorted(FILES))
    assert _of(_write(tmp_path, FILES)) == f"sha256:{hashlib.sha256(listed.encode()).hexdigest()}"


@pytest.mark.parametrize("name", FILES)
def test_a_byte_of_any_file_that_is_loaded_changes_it(tmp_path: Path, name: str):
    before = _of(_write(tmp_path / "before", FILES))
    assert _of(_write(tmp_path / "after", {**FILES, name: FILES[name] + b" "})) != before


def test_what_is_not_loaded_does_not_change_it(tmp_path: Path):
    before = _of(_write(tmp_path, FILES))
    others = (
        "README.md",
        "safety_checker/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "x.safetensors",
    )
    assert _of(_write(tmp_path, dict.fromkeys(others, b"more"))) == before


def test_a_variant_stands_for_its_own_weights_and_else_for_the_plain_ones(tmp_path: Path):
    plain = _of(_write(tmp_path, FILES))
    assert _of(tmp_path, variant="fp16") == plain
    sharded = "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"
    with_variant = _of(_write(tmp_path, {sharded: b"half"}), variant="fp16")
    assert with_variant != plain
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert _of(tmp_path, variant="fp16") == with_variant


def test_a_single_file_has_that_of_its_bytes_and_of_its_configuration_without_weights(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    config = _write(tmp_path / "config", FILES)
    alone, configured = _of(file), _of(file, config=str(config))
    assert len({alone, configured, _of(config)}) == 3
    _write(config, {"unet/diffusion_pytorch_model.safetensors": b"other"})
    assert _of(file.rename(tmp_path / "other.safetensors"), config=str(config)) == configured
    with pytest.raises(ValueError, match=r"model\.safetensors': there is no such file"):
        _of(file)


def test_a_hub_model_has_the_commit_of_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_fingerprint(ModelSource("user/model")) is None
    _write(
        tmp_path / "models--user--model", {"refs/main": COMMIT.encode(), f"snapshots/{COMMIT}/unet/config.json": b""}
    )
    assert model_fingerprint(ModelSource("user/model")) == f"commit:{COMMIT}"
    assert model_fingerprint(ModelSource("user/model", revision=COMMIT)) == f"commit:{COMMIT}"
    assert model_fingerprint(ModelSource("user/model", revision="other")) is None


def test_a_revision_that_is_a_commit_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_fingerprint(ModelSource("user/model", revision=COMMIT)) == f"commit:{COMMIT}"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/no/such/file")])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], object]):
    folder = _write(tmp_path, FILES)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    make(weights)
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.safetensors': there is no such file"):
        _of(folder)


def test_the_embedded_model_has_one():
    assert model_fingerprint(ModelSource("demo")) == _of(EMBEDDED_MODEL)


def test_only_the_model_of_a_run_passes(tmp_path: Path):
    folder = _write(tmp_path, FILES)
    source, fingerprint = ModelSource(str(folder)), _of(folder)
    for passing in (fingerprint, None, f"commit:{COMMIT}"):
        check_fingerprint(source, passing)
    _write(folder, {"unet/diffusion_pytorch_model.safetensors": b"other weights"})
    with pytest.raises(ValueError, match="is another one than the run was made with: its fingerprint is sha256:"):
        check_fingerprint(source, fingerprint)
