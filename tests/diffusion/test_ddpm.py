"""Edit-friendly DDPM inversion: its equations written out for one image, and what follows from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.edited_rows import Source, random_source, sample_rows
from helpers.edited_samples import ROUNDING, SOURCE, STEPS, SWAP, control_of, guidance, null_embeddings
from helpers.edits import difference, edit, edited_images, edits_flag
from helpers.fakes import rowwise, stable_diffusion_schedule
from helpers.jobs import arguments
from helpers.pools import EMPTY, images, invert
from helpers.tiny import captioned, write_shard
from torch import Tensor

from nti_batch import EditSettings, edit_image, read_inversions
from nti_batch.cli import main
from nti_batch.diffusion.ddpm import ddpm_mean, image_seed, noise_trajectory
from nti_batch.diffusion.edit_sample import edit_sample
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.json_object import Json
from nti_batch.models.stable_diffusion import StableDiffusion

DDPM = InversionSettings(method="ddpm", guidance_scale=3.5)
SCHEDULE = stable_diffusion_schedule(20)


def with_trajectory(source: Source, schedule: DDIMSchedule = SCHEDULE, seed: int = 0) -> Source:
    """The source with a trajectory whose x_0 is its noise."""
    trajectory = noise_trajectory(schedule, source.noise, seed)
    return replace(source, noise=trajectory[-1], pivot=trajectory[-2::-1])


def test_the_trajectory_has_the_image_and_independent_noise_at_every_level():
    schedule, latents = stable_diffusion_schedule(50), torch.full((4, 32, 32), 2.0)
    trajectory = noise_trajectory(schedule, latents, seed=3)
    assert torch.equal(trajectory[0], latents)
    abar = schedule.alphas_cumprod.view(-1, 1, 1, 1)
    noise = ((torch.stack(trajectory) - abar.sqrt() * latents) / (1 - abar).sqrt())[1:].flatten(1)
    # 4,096 values: a mean or a correlation of independent noise has a standard deviation of 1/64
    assert noise.mean(1).abs().max() < 5 / 64
    assert (torch.corrcoef(noise) - torch.eye(50)).abs().max() < 5 / 64
    torch.testing.assert_close(noise.var(1), torch.ones(50), atol=0.12, rtol=0)


def test_the_noise_depends_on_the_image_and_the_seed_alone():
    pixels = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    assert image_seed(0, pixels) == image_seed(0, pixels.clone())
    assert len({image_seed(0, pixels), image_seed(1, pixels), image_seed(0, pixels.flip(2))}) == 3
    first, again = (noise_trajectory(SCHEDULE, torch.zeros(4, 2, 2), image_seed(0, pixels)) for _ in range(2))
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("num_steps", [20, 50])
def test_the_mean_is_the_posterior_of_ddpm(num_steps: int):
    """Ho et al., "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239, equation 7."""
    schedule, generator = stable_diffusion_schedule(num_steps), torch.Generator().manual_seed(0)
    levels = schedule.alphas_cumprod.double()
    for t in range(1, num_steps + 1):
        origin, noise = (torch.randn(1, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        x_t = levels[t].sqrt() * origin + (1 - levels[t]).sqrt() * noise
        alpha = levels[t] / levels[t - 1]
        expected = levels[t - 1].sqrt() * (1 - alpha) / (1 - levels[t]) * origin
        expected += alpha.sqrt() * (1 - levels[t - 1]) / (1 - levels[t]) * x_t
        found = ddpm_mean(schedule, x_t.float(), noise.float(), t)
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
        velocity = levels[t].sqrt() * noise - (1 - levels[t]).sqrt() * origin
        of_v = ddpm_mean(replace(schedule, prediction_type="v_prediction"), x_t.float(), velocity.float(), t)
        torch.testing.assert_close(of_v.double(), expected, atol=1e-4, rtol=1e-4)


def edited_by_hand(source: Source, prompt: Tensor, scale: float, edit_scale: float, skipped: int) -> Tensor:
    """Algorithm 1 of the paper, then sampling with its noise maps, for one image; no batch and no shared step."""
    assert source.pivot is not None
    levels, steps = SCHEDULE.alphas_cumprod, SCHEDULE.num_steps
    trajectory = [*reversed(source.pivot), source.noise]

    def mean(x: Tensor, t: int, embedding: Tensor, w: float) -> Tensor:
        timestep = SCHEDULE.network_timesteps[t : t + 1]
        cond, uncond = (rowwise(x[None], timestep, e[None])[0] for e in (embedding, EMPTY))
        noise = uncond + w * (cond - uncond)
        origin = (x - (1 - levels[t]).sqrt() * noise) / levels[t].sqrt()
        return levels[t - 1].sqrt() * origin + (1 - levels[t - 1] - variance(t)).sqrt() * noise

    def variance(t: int) -> Tensor:
        return (1 - levels[t - 1]) / (1 - levels[t]) * (1 - levels[t] / levels[t - 1])

    z = {
        t: (trajectory[t - 1] - mean(trajectory[t], t, source.prompt, scale)) / variance(t).sqrt()
        for t in range(1, steps + 1)
    }
    x = trajectory[steps - skipped]
    for t in range(steps - skipped, 0, -1):
        x = mean(x, t, prompt, edit_scale) + variance(t).sqrt() * z[t]
    return x


def test_sources_and_edits_of_a_batch_are_those_of_the_equations_one_by_one():
    changes = [EditSettings(guidance_scale=9.0, skip_steps=0.36), EditSettings(), EditSettings(skip_steps=0.8)]
    sources = [with_trajectory(random_source(1, *changes)), with_trajectory(random_source(2, changes[0]), seed=5)]
    rows = iter(sample_rows(rowwise, SCHEDULE, sources, EMPTY, 3.5, shares_noise_maps=True))
    for source in sources:
        assert source.pivot is not None
        assert torch.equal(next(rows), source.pivot[-1])
        for prompt, settings in source.edits:
            scale, skipped = settings.guidance_scale or 3.5, int(settings.skip_steps * 20)
            expected = edited_by_hand(source, prompt, 3.5, scale, skipped)
            torch.testing.assert_close(next(rows), expected, atol=2e-3, rtol=1e-4)


def test_a_network_that_ignores_the_prompt_makes_no_edit():
    def linear(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        return 0.5 * latents

    source = with_trajectory(random_source(3, EditSettings(guidance_scale=15.0)))
    rows = sample_rows(linear, SCHEDULE, [source], EMPTY, 3.5, shares_noise_maps=True)
    assert torch.equal(rows[1], rows[0])


def test_a_linear_network_moves_an_edit_by_a_closed_form():
    """With e = a x + c(C), source and edit differ by D, and D_{t-1} = A_t D_t + B_t w (c* - c): no noise in it."""

    def linear(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        return 0.5 * latents + embeddings.view_as(latents)

    source = with_trajectory(random_source(4, EditSettings()))
    rows = sample_rows(linear, SCHEDULE, [source], EMPTY, 2.0, shares_noise_maps=True)
    levels, shift = SCHEDULE.alphas_cumprod.double(), 2.0 * (source.edits[0][0] - source.prompt).double()
    difference = torch.zeros(16, dtype=torch.float64)
    for t in range(20, 0, -1):
        variance = (1 - levels[t - 1]) / (1 - levels[t]) * (1 - levels[t] / levels[t - 1])
        of_noise = (1 - levels[t - 1] - variance).sqrt() - (levels[t - 1] * (1 - levels[t]) / levels[t]).sqrt()
        a, b = (levels[t - 1] / levels[t]).sqrt() + 0.5 * of_noise, of_noise
        difference = a * difference + b * shift.flatten()
    torch.testing.assert_close((rows[1] - rows[0]).flatten().double(), difference, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("skips", "expected"), [((), 0), ((0.5,), 10), ((0.5, 0.25), 15), ((1.0,), 0)])
def test_no_network_is_called_before_an_edit_leaves_its_source(skips: tuple[float, ...], expected: int):
    asked = []

    def noted(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        asked.append(timesteps[0].item())
        return rowwise(latents, timesteps, embeddings)

    source = with_trajectory(random_source(1, *(EditSettings(skip_steps=share) for share in skips)))
    rows = sample_rows(noted, SCHEDULE, [source], EMPTY, 3.5, shares_noise_maps=True)
    assert len(asked) == 2 * expected
    assert source.pivot is not None and torch.equal(rows[0], source.pivot[-1])


def sample(networks: StableDiffusion, edits: list[tuple[str, list[tuple[str, EditSettings]]]], scale: float) -> Tensor:
    """Rows of the tiny network, each image with a trajectory of its own."""
    prompts = [prompt for source, of_image in edits for prompt in (source, *(p for p, _ in of_image))]
    starts = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))[: len(edits)]
    schedule = networks.schedule(STEPS)
    trajectories = [noise_trajectory(schedule, start, i) for i, start in enumerate(starts)]
    rows = torch.stack([torch.stack(trajectory) for trajectory in trajectories], 1)
    inputs = (rows[-1], networks.embed_prompts(prompts), null_embeddings(len(edits)), guidance(edits, scale))
    pivot = list(rows[:-1].flip(0))
    return edit_sample(
        networks.predict, networks.controlled, schedule, *inputs, control_of(networks, edits), pivot, True
    )


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_the_sources_own_prompt_gives_the_source(networks: StableDiffusion, scale: float):
    settings = [EditSettings(), SWAP, EditSettings(skip_steps=0.36), EditSettings(blend_words=("red", "red"))]
    source, *edits = sample(networks, [(SOURCE, [(SOURCE, s) for s in settings])], scale)
    for row in edits:
        torch.testing.assert_close(row, source, atol=ROUNDING, rtol=0)


def test_a_batch_gives_what_each_edit_gives_alone(networks: StableDiffusion):
    blended = EditSettings(blend_words=("red", "blue"), blend_threshold=0.9, skip_steps=0.4, blend_start=0.5)
    edits = [("a blue circle on the left", blended), ("a red square on the left", EditSettings(guidance_scale=9.0))]
    together = sample(networks, [(SOURCE, edits), ("a small star", [("a small heart", SWAP)])], 3.5)
    for row, alone in zip(together[1:], edits, strict=False):
        torch.testing.assert_close(row, sample(networks, [(SOURCE, [alone])], 3.5)[1], atol=1e-3, rtol=1e-3)
        assert (row - together[0]).abs().max() > 1e-2


@pytest.mark.parametrize("storage", ["float32", "compact"])
def test_an_image_is_inverted_without_the_network(storage: Storage):
    def none(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        raise AssertionError("the network is not needed")

    states, pool = invert(none, SCHEDULE, DDPM, images(5), batch_size=2, storage=storage)
    assert (pool.work.calls, pool.work.forwards) == (0, 0)
    for seed, (state, (latents, _)) in enumerate(zip(states, images(5), strict=True)):
        trajectory = torch.stack(noise_trajectory(SCHEDULE, latents, seed))
        rounded = trajectory if storage == "float32" else trajectory.half().float()
        assert state.pivot is not None and torch.equal(state.pivot, rounded[:-1].flip(0))
        assert torch.equal(state.trajectory[-1], trajectory[-1])
        assert torch.equal(state.latents, rounded[0])
        assert len(state.null_embeddings) == len(state.losses) == len(state.inner_steps) == 20


CAPTION, BLUE = "a small red circle, number 0", "a small blue circle"
FLAGS = ["--model.method=ddpm", "--model.guidance_scale=3.5", "--model.num_steps=10"]


def tensors(out: Path) -> dict[str, tuple[Tensor, Tensor]]:
    found = {i.key: i for i in read_inversions(out)}
    return {key: (i.noise_latents, i.pivot) for key, i in sorted(found.items()) if i.pivot is not None}


def test_a_resumed_run_has_the_noise_of_an_unbroken_one(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard = write_shard(tmp_path / "s.tar", captioned(4))
    whole = [*arguments(tiny_model, shard, tmp_path / "whole"), *FLAGS, "--model.batch_size=3"]
    broken = [*arguments(tiny_model, shard, tmp_path / "broken"), *FLAGS, "--model.batch_size=1"]
    assert main(whole) == 0
    assert main([*broken, "--data.limit=1"]) == 0
    assert main(broken) == 0
    expected, found = tensors(tmp_path / "whole"), tensors(tmp_path / "broken")
    assert list(expected) == list(found) and len(found) == 4
    for key in expected:
        # the VAE rounds a batch of another size differently
        torch.testing.assert_close(found[key], expected[key], atol=1e-5, rtol=1e-4)
    assert len({noise.sum().item() for noise, _ in found.values()}) == 4, "each image should have its own noise"
    capsys.readouterr()
    assert main([*broken, "--model.noise_seed=1"]) == 2
    assert "model.noise_seed: 0 there, 1 now" in capsys.readouterr().err
    other = [*arguments(tiny_model, shard, tmp_path / "other"), *FLAGS, "--model.noise_seed=1"]
    assert main(other) == 0
    assert not any(torch.equal(expected[key][0], tensors(tmp_path / "other")[key][0]) for key in expected)


@pytest.mark.parametrize("family", ["tiny_v_model", "tiny_zero_snr_model", "tiny_xl_model"])
def test_every_family_is_edited_and_the_own_prompt_gives_the_source(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
):
    shard, out = write_shard(tmp_path / "a.tar", captioned(1)), tmp_path / "out"
    assert main([*arguments(request.getfixturevalue(family), shard, out), *FLAGS]) == 0
    own: list[dict[str, Json]] = [
        {"key": "000", "name": "own", "edit_prompt": CAPTION},
        {"key": "000", "name": "source"},
    ]
    blue: dict[str, Json] = {"key": "000", "name": "blue", "edit_prompt": BLUE, "guidance_scale": 15}
    assert main(edit(out, tmp_path / "edited", edits_flag(tmp_path / "edits.jsonl", *own, blue))) == 0
    edited = edited_images(tmp_path / "edited")
    assert difference(edited["a", "000", "own"], edited["a", "000", "source"]) <= 1


def test_edits_of_a_run_are_made_by_the_job_and_alone(tiny_model: Path, tmp_path: Path):
    shard, out = write_shard(tmp_path / "a.tar", captioned(2)), tmp_path / "out"
    assert main([*arguments(tiny_model, shard, out), *FLAGS]) == 0
    blue: dict[str, Json] = {"name": "blue", "edit_prompt": BLUE, "guidance_scale": 15, "skip_steps": 0.36}
    listed: list[dict[str, Json]] = [
        {"key": "000", "name": "own", "edit_prompt": CAPTION, "guidance_scale": 3.5},
        {"key": "000", "name": "source"},
        {"key": "000", **blue},
        {"key": "001", **blue},
    ]
    assert main(edit(out, tmp_path / "edited", edits_flag(tmp_path / "edits.jsonl", *listed))) == 0
    assert main(["verify", str(tmp_path / "edited")]) == 0
    edited = edited_images(tmp_path / "edited")
    assert difference(edited["a", "000", "own"], edited["a", "000", "source"]) <= 1
    for inversion in read_inversions(out):
        settings = EditSettings(guidance_scale=15, skip_steps=0.36)
        alone = torch.from_numpy(np.array(edit_image(inversion, BLUE, settings))).permute(2, 0, 1)
        assert difference(alone, edited["a", inversion.key, "blue"]) <= 1
        assert inversion.metadata["forwards"] == 0
