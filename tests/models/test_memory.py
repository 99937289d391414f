"""Settings that save memory: checkpointing changes no bit of a result, and the VAE works in tiles."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import graphs
from helpers.edits import edit
from helpers.jobs import arguments, expect_one_sentence
from helpers.models import edit_json
from helpers.tiny import captioned, write_model, write_shard
from torch import Tensor
from torch._dynamo.utils import counters

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.models.acceleration import Acceleration
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import StoredInversion
from nti_batch.settings import InversionRunSettings

LARGE = torch.randint(256, (2, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
"""Images above the size of the tiny model's VAE, 16."""


@pytest.fixture(params=["tiny_model", "tiny_xl_model"])
def networks(request: pytest.FixtureRequest) -> StableDiffusion:
    model: Path = request.getfixturevalue(request.param)
    return StableDiffusion.load(ModelSource(str(model)))


def both_calls(networks: StableDiffusion, acceleration: Acceleration) -> tuple[Tensor, Tensor, Tensor, int]:
    """Prediction without gradient, prediction with it, the gradient, and the bytes that wait for the backward pass."""
    generator = torch.Generator().manual_seed(0)
    latents, timesteps = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([1, 101])
    embeddings = networks.embed_prompts(["a circle", "a star"])
    predict = acceleration.predictor(networks, lambda: 2)
    with torch.no_grad():
        first = predict(latents, timesteps, embeddings)
    embeddings.requires_grad_()
    weights, kept = {weight.data_ptr() for weight in networks.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = 0 if storage.data_ptr() in weights else storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        second = predict(latents, timesteps, embeddings)
    gradient = torch.autograd.grad(second.square().sum(), embeddings)[0]
    return first, second.detach(), gradient, sum(kept.values())


def test_checkpointing_keeps_fewer_bytes_and_changes_no_bit(networks: StableDiffusion):
    assert not networks.unet.training
    *expected, kept = both_calls(networks, Acceleration())
    *found, fewer = both_calls(networks, Acceleration(checkpointing=True))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert fewer < 0.6 * kept


def test_a_compiled_call_with_checkpointing_is_one_graph_and_predicts_the_same(tiny_model: Path):
    torch.compiler.reset()
    counters.clear()
    networks = StableDiffusion.load(ModelSource(str(tiny_model)))
    *expected, _ = both_calls(networks, Acceleration())
    *found, _ = both_calls(networks, Acceleration(checkpointing=True, compile_backend="aot_eager"))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2
    torch.compiler.reset()


def test_a_captured_call_with_checkpointing_predicts_the_same(
    networks: StableDiffusion, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphs.make_graphed_callables)
    *expected, _ = both_calls(networks, Acceleration())
    *found, _ = both_calls(networks, Acceleration(checkpointing=True, cuda_graphs=True))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_checkpointing_keeps_no_state_of_random_numbers(networks: StableDiffusion, monkeypatch: pytest.MonkeyPatch):
    """The capture of a CUDA graph ends in an error if that state is read."""
    read = Mock(wraps=torch.get_rng_state)
    monkeypatch.setattr(torch, "get_rng_state", read)
    both_calls(networks, Acceleration(checkpointing=True))
    assert not read.called


def stored(out: Path) -> dict[str, StoredInversion]:
    return {each.key: each for each in read_inversions(out)}


def test_a_run_continues_with_another_value_of_checkpointing(tiny_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "a.tar", captioned(3))
    assert main(arguments(tiny_model, shard, tmp_path / "plain", "--model.batch_size=1")) == 0
    flags = "--model.batch_size=1", "--data.limit=1"
    assert main(arguments(tiny_model, shard, tmp_path / "out", *flags)) == 0
    flags = "--model.batch_size=1", "--model.checkpointing=true"
    assert main(arguments(tiny_model, shard, tmp_path / "out", *flags)) == 0
    expected, found = stored(tmp_path / "plain"), stored(tmp_path / "out")
    assert len(found) == 3
    for key, each in found.items():
        assert each.metadata["backwards"], "no call had a gradient"
        assert torch.equal(each.null_embeddings, expected[key].null_embeddings)


def test_a_vae_in_tiles_takes_one_image_at_a_time_and_none_above_its_size(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, tiled = (StableDiffusion.load(ModelSource(str(tiny_model), vae_tiling=on)) for on in (False, True))
    seen: list[torch.Size] = []
    for part in (tiled.vae.encoder, tiled.vae.decoder):
        part.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    expected, latents = whole.encode_images(LARGE), tiled.encode_images(LARGE)
    images = tiled.decode_latents(latents)
    assert latents.shape == expected.shape and images.shape == LARGE.shape
    assert not torch.equal(latents, expected)
    assert {shape[0] for shape in seen} == {1} and max(max(shape[2:]) for shape in seen) == 16
    # an image of the VAE's own size is one tile
    small = LARGE[:, :, :16, :16]
    torch.testing.assert_close(tiled.encode_images(small), whole.encode_images(small))


def test_tiles_are_a_setting_of_the_run_that_the_edits_share(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    shard, out = write_shard(tmp_path / "a.tar", captioned(1)), tmp_path / "out"
    size = "--data.height=32", "--data.width=32"
    assert main(arguments(tiny_model, shard, out, *size, "--model.vae_tiling=true")) == 0
    assert json.loads((out / "run.json").read_text())["settings"]["model"]["vae_tiling"] is True
    (inversion,) = read_inversions(out)
    settings: InversionRunSettings = inversion.settings
    assert settings.source.vae_tiling
    assert main(["verify", str(out), f"--data.shards={shard}", "--recompute=1"]) == 0
    assert main(arguments(tiny_model, shard, out, *size)) == 2
    expect_one_sentence("model.vae_tiling", capsys=capsys)
    tiled: list[bool] = []
    decode = StableDiffusion.decode_latents

    def noted(networks: StableDiffusion, latents: Tensor) -> Tensor:
        tiled.append(networks.vae.use_tiling)
        return decode(networks, latents)

    monkeypatch.setattr(StableDiffusion, "decode_latents", noted)
    assert main(edit(out, tmp_path / "edits")) == 0
    assert tiled and all(tiled)


@pytest.mark.parametrize("size", [[16, 16], 12])
def test_a_vae_whose_size_cannot_be_that_of_tiles_is_refused(
    size: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, shard = write_model(tmp_path / "model"), write_shard(tmp_path / "a.tar", captioned(1))
    edit_json(model / "vae" / "config.json", sample_size=size)
    assert main(arguments(model, shard, tmp_path / "out", "--model.vae_tiling=true")) == 2
    allowed = f"sample_size is {size}, allowed: a multiple of 8; leave model.vae_tiling out"
    expect_one_sentence("model.vae_tiling is true", allowed, capsys=capsys)
