"""A compiled, padded or captured network predicts what the network predicts, with the same gradients."""

from pathlib import Path
from shutil import which

import pytest
import torch
from helpers import graphs
from helpers.jobs import arguments
from helpers.pools import NEVER
from helpers.tiny import captioned, write_shard
from torch import Tensor
from torch._dynamo.utils import counters

from nti_batch import read_inversions
from nti_batch.benchmarks.timing import UNetClock
from nti_batch.cli import main
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.acceleration import Acceleration, CapturedPredictor, PaddedPredictor
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module", params=["tiny_model", "tiny_xl_model"])
def networks(request: pytest.FixtureRequest) -> StableDiffusion:
    model: Path = request.getfixturevalue(request.param)
    return StableDiffusion.load(ModelSource(str(model)))


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Acceleration:
    """CUDA graphs without a GPU."""
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphs.make_graphed_callables)
    return Acceleration(cuda_graphs=True)


def inputs(networks: StableDiffusion, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    latents = torch.randn(rows, 4, 8, 8, generator=generator)
    embeddings = networks.embed_prompts(["a circle", "a star", "a cup", "a cat"][:rows])
    return latents, torch.arange(rows) * 100 + 1, embeddings


def both_calls(predict: Predictor, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> tuple[Tensor, ...]:
    """Prediction without gradient, prediction with it, and the gradient."""
    with torch.no_grad():
        first = predict(latents, timesteps, embeddings)
    asked = embeddings.clone().requires_grad_()
    second = predict(latents, timesteps, asked)
    return first, second.detach(), torch.autograd.grad(second.square().sum(), asked)[0]


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 1e-4) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance * float(b.abs().max()), rtol=tolerance)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_padding_changes_neither_predictions_nor_gradients(networks: StableDiffusion, rows: int):
    seen: list[int] = []

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        seen.append(len(latents))
        return networks.predict(latents, timesteps, embeddings)

    call = inputs(networks, rows)
    assert_same(both_calls(PaddedPredictor(predict, lambda: 3), *call), both_calls(networks.predict, *call))
    assert seen == [3, 3]


@pytest.mark.parametrize("rows", [1, 3])
def test_captured_calls_predict_what_the_network_predicts(networks: StableDiffusion, captured: Acceleration, rows: int):
    predict = captured.predictor(networks, lambda: 3)
    others = both_calls(predict, *inputs(networks, 2))
    kept = [tensor.clone() for tensor in others]
    call = inputs(networks, rows)
    assert_same(both_calls(predict, *call), both_calls(networks.predict, *call))
    assert all(torch.equal(a, b) for a, b in zip(others[:2], kept[:2], strict=True)), "a later call changed a result"
    # the time of a captured call is measured as that of any other
    assert_same(both_calls(UNetClock(predict, networks.device), *call), both_calls(networks.predict, *call))


def test_a_captured_backward_pass_after_another_call_is_refused(networks: StableDiffusion, captured: Acceleration):
    predict = captured.predictor(networks, lambda: 2)
    latents, timesteps, embeddings = inputs(networks, 2)
    first = predict(latents, timesteps, embeddings.requires_grad_())
    predict(latents, timesteps, embeddings)
    with pytest.raises(RuntimeError, match="its backward pass must come before the next call"):
        first.sum().backward()


def test_the_graphs_of_a_smaller_batch_size_replace_those_of_the_larger_one(
    networks: StableDiffusion, captured: Acceleration
):
    predict = CapturedPredictor(networks.predict)
    for rows in (3, 2):
        call = inputs(networks, rows)
        assert_same(both_calls(predict, *call), both_calls(networks.predict, *call))
        assert {shape[0] for shape, _ in predict._captured} == {rows}


def test_a_capture_that_does_not_fit_the_memory_says_so(
    networks: StableDiffusion, captured: Acceleration, monkeypatch: pytest.MonkeyPatch
):
    """A batch size that did not fit is halved only if the error is that of the memory."""

    def cut_short(*arguments: object) -> None:
        try:
            raise torch.OutOfMemoryError("no memory")
        finally:
            raise RuntimeError("capture_end: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", cut_short)
    predict = captured.predictor(networks, lambda: 2)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        predict(*inputs(networks, 2))


def invert(predict: Predictor, networks: StableDiffusion) -> list[Tensor]:
    """Null embeddings of three images by a pool with the batch size 2."""
    settings = InversionSettings(num_inner_steps=2, **NEVER)
    pool = InversionPool[int](predict, networks.schedule(3), settings, networks.embed_prompts([""])[0], 2)
    latents, _, prompts = inputs(networks, 3)
    done = dict(pool.run((key, latents[key], prompts[key], key) for key in range(3)))
    return [done[key].null_embeddings for key in range(3)]


def test_an_inversion_by_captured_calls_is_that_by_the_network(networks: StableDiffusion, captured: Acceleration):
    expected = invert(networks.predict, networks)
    found = invert(captured.predictor(networks, lambda: 2), networks)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_the_network_is_compiled_once_for_each_kind_of_call(networks: StableDiffusion):
    torch.compiler.reset()
    counters.clear()
    predict = Acceleration(compile_backend="aot_eager").predictor(networks, lambda: 3)
    for rows in (3, 1, 2, 3):
        call = inputs(networks, rows)
        assert_same(both_calls(predict, *call), both_calls(networks.predict, *call))
    assert counters["stats"]["unique_graphs"] == 2
    torch.compiler.reset()


@pytest.mark.long
@pytest.mark.skipif(which("g++") is None, reason="inductor needs a C++ compiler on a processor")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_inductor_compiles_the_network(tiny_xl_model: Path, checkpointing: bool):
    # of the other tiny model, torch 2.13 computes wrong gradients on a processor, which `warm_up` refuses
    networks, plain = (StableDiffusion.load(ModelSource(str(tiny_xl_model))) for _ in range(2))
    acceleration = Acceleration(compile_backend="inductor", checkpointing=checkpointing)
    predict = acceleration.predictor(networks, lambda: 2)
    for rows in (2, 1):
        call = inputs(networks, rows)
        assert_same(both_calls(predict, *call), both_calls(plain.predict, *call), tolerance=1e-3)


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--model.compile=inductr", "model.compile is 'inductr', allowed: "),
        ("--model.cuda_graphs=true", "model.cuda_graphs is true, and the device is cpu: leave it out"),
    ],
)
@pytest.mark.parametrize("command", ["invert", "bench"])
def test_an_acceleration_that_this_machine_lacks_is_refused(
    command: str, flag: str, text: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    given = arguments(tiny_model, shard, tmp_path / "out", flag)
    if command == "bench":
        given = ["bench", f"--model.name={tiny_model}", f"--data.shards={shard}", "--images=1", "--device=cpu", flag]
    assert main(given) == 2
    assert text in capsys.readouterr().err


def test_a_compiled_job_says_what_it_compiled_and_pads_its_tail(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.compiler.reset()
    counters.clear()
    shard = write_shard(tmp_path / "s.tar", captioned(5))
    for name, flags in {"plain": [], "compiled": ["--model.compile=aot_eager"]}.items():
        assert main(arguments(tiny_model, shard, tmp_path / name, *flags)) == 0
    assert "the UNet is compiled for 2 images in one call, which took" in capsys.readouterr().err
    assert counters["stats"]["unique_graphs"] == 2, "the tail of the job has one image a call"
    plain, compiled = ({s.key: s for s in read_inversions(tmp_path / name)} for name in ("plain", "compiled"))
    for key, stored in plain.items():
        torch.testing.assert_close(compiled[key].null_embeddings, stored.null_embeddings, atol=1e-3, rtol=1e-3)
    torch.compiler.reset()
