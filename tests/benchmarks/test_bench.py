"""The benchmarks count what they should, and the job and the reference loop find the same inversion."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from diffusers.models.unets import unet_2d_condition
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from helpers.tiny import captioned, write_shard
from PIL import Image

from nti_batch import edit_image
from nti_batch.benchmarks import edits, inner_step
from nti_batch.benchmarks.full_size import Family, random_unet
from nti_batch.benchmarks.inner_step import AUTHORS, JOB, Step, timed_step
from nti_batch.benchmarks.job_loop import job_loop, load_images
from nti_batch.benchmarks.loop_result import Score, score
from nti_batch.benchmarks.ranks import images_per_hour
from nti_batch.benchmarks.reference_loop import reference_loop
from nti_batch.benchmarks.solvers import FAST, TWO_UPDATES, Case, table_row
from nti_batch.benchmarks.storage import packed, replay_psnr, widened
from nti_batch.benchmarks.timing import UNetClock
from nti_batch.cli import main
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import StoredInversion

NEVER = InversionSettings(num_inner_steps=2, early_stop_epsilon=0, early_stop_growth=0)
AUTHORS_LOOP = InversionSettings(solver="authors", early_stop_epsilon=0.15, early_stop_growth=0.3)


@pytest.fixture(scope="module")
def networks(tiny_model: Path) -> StableDiffusion:
    return StableDiffusion.load(ModelSource(str(tiny_model)))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards") / "s.tar", captioned(4))


def test_without_early_stop_the_job_and_the_reference_loop_find_the_same_inversion(
    networks: StableDiffusion, shard: Path
):
    images, schedule = load_images({"s": str(shard)}, "txt", (16, 16), 2), networks.schedule(3)
    clock = UNetClock(networks.predict, networks.device)
    inverted = job_loop(networks, clock, images, schedule, NEVER, batch_size=2, storage="float32")
    for image, job in zip(images, inverted, strict=True):
        reference = reference_loop(networks, clock, image, schedule, NEVER)
        torch.testing.assert_close(job.null_embeddings, reference.null_embeddings, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(job.latents, reference.latents, atol=1e-3, rtol=1e-3)
        # each timestep: inversion, e_c, two steps; then the job evaluates once more, and the reference loop twice
        assert (job.forwards, job.backwards) == (3 + 3 * (1 + 2 + 1), 3 * 2)
        assert (reference.forwards, reference.backwards) == (3 + 3 * (1 + 2 + 2), 3 * 2)
    assert not any(p.requires_grad or p.grad is not None for p in networks.unet.parameters())


def test_the_solver_called_authors_finds_what_the_reference_loop_finds(networks: StableDiffusion, shard: Path):
    images, schedule = load_images({"s": str(shard)}, "txt", (16, 16), 3), networks.schedule(4)
    predict = networks.predict
    inverted = job_loop(networks, predict, images, schedule, AUTHORS_LOOP, batch_size=2, storage="float32")
    updates = []
    for image, job in zip(images, inverted, strict=True):
        reference = reference_loop(networks, predict, image, schedule, AUTHORS_LOOP)
        torch.testing.assert_close(job.null_embeddings, reference.null_embeddings, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(job.latents, reference.latents, atol=1e-3, rtol=1e-3)
        # the reference loop evaluates the prompt again for each step down
        assert (job.forwards, job.backwards) == (reference.forwards - 4, reference.backwards)
        updates.append(job.backwards)
    assert 4 < max(updates) < 40, "some timesteps should stop early and some should not"


def test_the_command_prints_both_sides(tiny_model: Path, shard: Path, capsys: pytest.CaptureFixture[str]):
    command = ["bench", f"--model.name={tiny_model}", f"--data.shards={shard}", "--images=4"]
    command += ["--model.batch_size=2", "--model.num_steps=3"]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    job, reference = printed["job"], printed["reference"]
    for side in (job, reference):
        assert printed["psnr_vae"] - side["psnr"] == pytest.approx(side["psnr_below_vae"], abs=1e-3)
        assert 0 < side["unet_share"] < 1 and side["peak_bytes"] > 50 * 2**20 and side["null_distance"] > 0
    assert printed["speedup"] == pytest.approx(job["images_per_hour"] / reference["images_per_hour"])
    assert job["forward_equivalents"] == job["forwards"] + job["backwards"]
    assert reference["forward_equivalents"] == reference["forwards"] + 2 * reference["backwards"]
    assert job["stored_bytes"] == reference["stored_bytes"]
    assert main(command) == 0
    assert "forward equivalents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("--images=9", "--images is 9, and"),
        ("--rounds=0", "--rounds is 0, allowed: 1 to the number of images, 4"),
        ("--model.name=/none", "model '/none' is not a folder"),
        ("--model.solver=sgd", "model.solver"),
        ("--device=abacus", "--device is 'abacus', allowed: one that this machine has"),
        ("--model.num_steps=101", "num_steps is 101, allowed with the solver 'authors': 1 to 100"),
    ],
)
def test_a_wrong_setting_is_refused(
    tiny_model: Path, shard: Path, wrong: str, text: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", f"--model.name={tiny_model}", f"--data.shards={shard}", "--images=4", wrong]) == 2
    assert text in capsys.readouterr().err


def test_a_row_of_a_solver_has_means_over_the_images():
    scores = [
        Score(forwards=f, backwards=b, stored_bytes=2000 * f, psnr=30.0 - gap, psnr_vae=30.0, distance=d)
        for f, b, gap, d in ((100, 0, 0.1, 1.0), (200, 50, 0.3, 3.0))
    ]
    row = table_row("Adam", Case(name="scenes", images=[]), scores)
    assert row == "| Adam | 2 scenes | 7.5 | 50 | 150 | 25 | 175 | 0.200 | 0.30 | 2.0 | 300.0 |"


def test_a_reconstruction_from_the_stored_tensors_has_the_psnr_of_the_job(networks: StableDiffusion, shard: Path):
    images, schedule = load_images({"s": str(shard)}, "txt", (16, 16), 2), networks.schedule(50)
    settings = InversionSettings(num_inner_steps=2)
    for storage in get_args(Storage):
        inverted = job_loop(networks, networks.predict, images, schedule, settings, 16, storage)
        for image, result in zip(images, inverted, strict=True):
            psnr = score(networks, image, result).psnr
            assert abs(psnr - replay_psnr(networks, image, packed(storage, result), 50, 7.5)) < 1e-3
    payload = packed("float32", dataclasses.replace(result, noise_latents=torch.zeros_like(result.noise_latents)))
    assert abs(psnr - replay_psnr(networks, image, payload, 50, 7.5)) > 1e-3


@pytest.mark.parametrize(("name", "solver"), [("fast", FAST), ("two-updates", TWO_UPDATES)])
def test_a_solver_has_the_settings_of_its_config(name: str, solver: InversionSettings):
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / f"{name}.yaml").read_text())
    assert InversionSettings(**config["model"]) == solver


def test_widened_embeddings_change_as_much_at_each_timestep():
    embeddings = torch.randn(5, 3, 4)
    embeddings[2] = embeddings[1]
    wide = widened(embeddings, 12)
    assert wide.shape == (5, 3, 12) and torch.equal(wide[2], wide[1])
    sizes, expected = (wide[1:] - wide[:-1]).abs(), (embeddings[1:] - embeddings[:-1]).abs()
    for block in sizes.split(4, dim=-1):
        torch.testing.assert_close(block.sort(-1).values, expected.sort(-1).values)


def test_one_and_two_ranks_invert_the_shard(tiny_model: Path, shard: Path):
    flags = [f"--model.name={tiny_model}", "--model.num_steps=2", "--data.units_per_shard=2"]
    assert all(images_per_hour(str(shard), ranks, flags) > 0 for ranks in (1, 2))


def test_the_edit_job_is_compared_with_a_loop_over_the_same_edits(
    tiny_model: Path, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    flags = [f"--model.name={tiny_model}", "--model.num_steps=2", f"--data.shards={shard}"]
    assert main(["invert", *flags, "--trainer.accelerator=cpu", f"--output.dir={tmp_path}"]) == 0
    capsys.readouterr()
    edited: list[str | None] = []

    def counted(image: StoredInversion, prompt: str | None, networks: StableDiffusion) -> Image.Image:
        edited.append(image.key)
        return edit_image(image, prompt, networks=networks)

    monkeypatch.setattr(edits, "edit_image", counted)
    monkeypatch.setattr("sys.argv", ["edits", str(tmp_path), "--images=2", "--edits=3", "--batch_size=4", "--rounds=1"])
    edits.main()
    rates, ratio = capsys.readouterr().out.splitlines()
    job, loop = (float(number) for number in re.findall(r"\d+", rates))
    assert sorted(Counter(edited).values()) == [3, 3]
    assert float(re.findall(r"[\d.]+", ratio)[0]) == pytest.approx(job / loop, rel=0.01)


@pytest.mark.parametrize(("step", "has_gradients"), [(AUTHORS, True), *((step, False) for step in JOB)])
def test_only_the_inner_step_of_the_reference_computes_gradients_of_weights(
    step: Step, has_gradients: bool, monkeypatch: pytest.MonkeyPatch
):
    filled: list[torch.dtype] = []

    def small(sample_size: int, cross_attention_dim: int) -> UNet2DConditionModel:
        blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
        unet = UNet2DConditionModel(
            sample_size, cross_attention_dim=cross_attention_dim, block_out_channels=(32,), **blocks
        )
        for parameter in unet.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: filled.append(p.dtype))
        return unet

    monkeypatch.setattr(unet_2d_condition, "UNet2DConditionModel", small)
    inner_step._unet.cache_clear()
    seconds, peak = timed_step(step, "cpu", latents_size=8)
    assert bool(filled) is has_gradients
    assert seconds > 0 and peak > 50 * 2**20 and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("family", "parameters"),
    [("1.x", 859_520_964), ("2.1-base", 865_910_724), ("2.1", 865_910_724), ("xl", 2_567_463_684)],
)
def test_the_full_size_networks_have_the_published_number_of_weights(family: Family, parameters: int):
    with torch.device("meta"):
        unet = random_unet("bfloat16", torch.device("meta"), family)
    assert sum(weights.numel() for weights in unet.parameters()) == parameters
    assert unet.dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32
