"""The job on a CUDA GPU: the results of a processor, in every precision and with every acceleration."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.jobs import rows

from nti_batch.cli import main
from nti_batch.diffusion.batch_size import MAX_BATCH_SIZE, find_batch_size
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.jobs.flags import SAMPLES
from nti_batch.jobs.writer import RecordWriter
from nti_batch.models.acceleration import Acceleration, CapturedPredictor
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import Inversion, Outcome

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")]
SHARD = min(SAMPLES.glob("*.tar"))
STEPS = 5


def inverted(out: Path, *more: str, accelerator: str = "gpu") -> dict[str, float]:
    """Invert samples of the package; return the PSNR of each image."""
    command = ["invert", "--model.name=demo", f"--data.shards={SHARD}", f"--output.dir={out}"]
    command += [f"--model.num_steps={STEPS}", "--model.batch_size=4", f"--trainer.accelerator={accelerator}"]
    assert main([*command, *more]) == 0
    return {key: row.psnr for key, row in rows(out).items() if row.psnr is not None}


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """PSNR of the images as a processor inverts them."""
    return inverted(tmp_path_factory.mktemp("cpu") / "out", accelerator="cpu")


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of the same images on the GPU, in float32."""
    out = tmp_path_factory.mktemp("gpu") / "out"
    inverted(out)
    return out


@pytest.fixture(scope="module")
def networks() -> StableDiffusion:
    return StableDiffusion.load(ModelSource("demo")).to("cuda")


@pytest.fixture
def little_memory(networks: StableDiffusion) -> Iterator[None]:
    """Allow this process the memory that a call with 32 images takes."""
    inputs = call_inputs(networks, 32)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    gradients(networks, *inputs)
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(peak / torch.cuda.get_device_properties(0).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def call_inputs(networks: StableDiffusion, batch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, timesteps and embeddings of a call."""
    generator, side = torch.Generator().manual_seed(batch_size), networks.unet.config.sample_size
    latents = torch.randn(batch_size, 4, side, side, generator=generator).cuda()
    timesteps = (torch.arange(batch_size) * 7 + 1).cuda()
    embeddings = networks.embed_prompts(["a large red circle"]).repeat(batch_size, 1, 1)
    return latents, timesteps, embeddings.requires_grad_()


@torch.enable_grad()
def gradients(
    networks: StableDiffusion, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor
) -> torch.Tensor:
    prediction = networks.predict(latents, timesteps, embeddings)
    return torch.autograd.grad(prediction.square().sum(), embeddings)[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_images_have_the_psnr_of_a_processor_in_every_precision(
    precision: str, on_cpu: dict[str, float], tmp_path: Path
):
    assert inverted(tmp_path / "out", f"--model.precision={precision}") == pytest.approx(on_cpu, abs=0.3)


def test_the_network_predicts_and_has_the_gradients_of_a_processor(networks: StableDiffusion):
    torch.backends.cudnn.allow_tf32 = False
    inputs = call_inputs(networks, 3)
    on_gpu = gradients(networks, *inputs).cpu()
    latents, timesteps, embeddings = (tensor.detach().cpu() for tensor in inputs)
    expected = gradients(StableDiffusion.load(ModelSource("demo")), latents, timesteps, embeddings.requires_grad_())
    torch.backends.cudnn.allow_tf32 = True
    torch.testing.assert_close(on_gpu, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_a_batch_size_that_does_not_fit_is_halved(networks: StableDiffusion, little_memory: None):
    pool = InversionPool[int](
        networks.predict,
        networks.schedule(2),
        InversionSettings(num_inner_steps=1, early_stop_epsilon=0, early_stop_growth=0),
        networks.embed_prompts([""])[0],
        batch_size=128,
    )
    latents, _, embeddings = call_inputs(networks, 130)
    for key in range(130):
        pool.admit(key, latents[key], embeddings[key].detach(), seed=0)
    finished = dict(pool.finish())
    assert pool.batch_size < 128 and len(finished) == 130
    assert not any(state.error for state in finished.values())


def test_the_batch_size_that_is_found_fits(networks: StableDiffusion, little_memory: None):
    latents, timesteps, embeddings = call_inputs(networks, 1)
    found = find_batch_size(networks.predict, latents[0], timesteps[0], embeddings[0].detach())
    assert 1 <= found < MAX_BATCH_SIZE
    torch.cuda.empty_cache()
    gradients(networks, *call_inputs(networks, found))


def test_the_job_finds_its_batch_size(on_cpu: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert inverted(tmp_path / "out", "--model.batch_size=auto") == pytest.approx(on_cpu, abs=0.3)
    assert "images in one call are the fastest" in capsys.readouterr().err


def test_cuda_graphs_predict_what_the_network_predicts(networks: StableDiffusion):
    predict = Acceleration(cuda_graphs=True).predictor(networks, lambda: 4)
    for batch_size in (4, 3, 1):
        latents, timesteps, embeddings = call_inputs(networks, batch_size)
        with torch.no_grad():
            torch.testing.assert_close(
                predict(latents, timesteps, embeddings),
                networks.predict(latents, timesteps, embeddings),
                atol=1e-3,
                rtol=1e-3,
            )
        prediction = predict(latents, timesteps, embeddings)
        found = torch.autograd.grad(prediction.square().sum(), embeddings)[0]
        expected = gradients(networks, latents, timesteps, embeddings)
        torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-2)


def test_checkpointing_takes_less_memory_for_the_same_gradients():
    networks = StableDiffusion.load(ModelSource("demo")).to("cuda")
    inputs, peaks, found = call_inputs(networks, 16), [], []
    for acceleration in (Acceleration(), Acceleration(checkpointing=True)):
        acceleration.predictor(networks, lambda: 16)
        gradients(networks, *inputs)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found.append(gradients(networks, *inputs))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    torch.testing.assert_close(found[1], found[0], atol=1e-3 * float(found[0].abs().max()), rtol=1e-2)
    assert peaks[1] < 0.7 * peaks[0]


@pytest.mark.parametrize("more", [[], ["--model.cuda_graphs=true"]])
def test_the_job_with_checkpointing_finds_the_same_images(more: list[str], on_cpu: dict[str, float], tmp_path: Path):
    assert inverted(tmp_path / "out", "--model.checkpointing=true", *more) == pytest.approx(on_cpu, abs=0.3)


def test_graphs_are_captured_while_the_writer_stores(
    on_cpu: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every call with a gradient is captured anew, as after a batch size that did not fit."""
    call = CapturedPredictor.__call__

    def anew(predict: CapturedPredictor, *inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            predict._captured.clear()
        return call(predict, *inputs)

    monkeypatch.setattr(CapturedPredictor, "__call__", anew)
    flags = "--model.cuda_graphs=true", "--output.storage=float16"
    assert inverted(tmp_path / "out", *flags) == pytest.approx(on_cpu, abs=0.3)


def test_the_writer_gets_records_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put, taken = RecordWriter.put, []

    def noted(writer: RecordWriter, outcome: Outcome) -> None:
        taken.append(outcome)
        put(writer, outcome)

    monkeypatch.setattr(RecordWriter, "put", noted)
    inverted(tmp_path / "out")
    inversions = [outcome for outcome in taken if isinstance(outcome, Inversion)]
    assert inversions
    assert {each.null_embeddings.device.type for each in inversions} == {"cpu"}


def test_the_preview_is_drawn_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decode, devices = StableDiffusion.decode_latents, set()

    def noted(networks: StableDiffusion, latents: torch.Tensor) -> torch.Tensor:
        devices.add(latents.device.type)
        return decode(networks, latents)

    monkeypatch.setattr(StableDiffusion, "decode_latents", noted)
    inverted(tmp_path / "out")
    assert (tmp_path / "out" / "preview.png").exists()
    assert devices == {"cuda"}


def test_a_backward_pass_after_another_call_is_refused(networks: StableDiffusion):
    predict = Acceleration(cuda_graphs=True).predictor(networks, lambda: 2)
    inputs = call_inputs(networks, 2)
    first = predict(*inputs)
    predict(*inputs)
    with pytest.raises(RuntimeError, match="before the next call"):
        first.sum().backward()


def test_the_job_in_cuda_graphs_finds_the_same_images(on_cpu: dict[str, float], tmp_path: Path):
    assert inverted(tmp_path / "out", "--model.cuda_graphs=true") == pytest.approx(on_cpu, abs=0.3)


def test_the_compiled_job_finds_the_same_images(
    on_cpu: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--model.compile=inductor", "--model.cuda_graphs=true"]
    assert inverted(tmp_path / "out", *flags) == pytest.approx(on_cpu, abs=0.3)
    assert "the UNet is compiled for 4 images in one call" in capsys.readouterr().err


def test_inversions_are_edited_and_verified(on_gpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["edit", f"--data.inversions={on_gpu}", "--data.edit_prompt=a photograph", f"--output.dir={tmp_path}"]
    assert main([*command, "--trainer.accelerator=gpu"]) == 0
    assert main(["verify", str(on_gpu), "--recompute=4"]) == 0
    capsys.readouterr()
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == len(rows(on_gpu))
