"""The variants of null-text optimization against the pool, and against closed forms of linear networks."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers.fakes import rowwise, stable_diffusion_schedule
from torch import Tensor

from nti_batch.benchmarks import ablations
from nti_batch.benchmarks.ablations import EncodedImages
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.settings import InversionSettings

STEPS = 5


def encoded(predict: Predictor, prompt: float | None = None) -> EncodedImages:
    """Three images; all values of a prompt's embedding are `prompt`, or random."""
    generator = torch.Generator().manual_seed(0)
    latents, prompts = torch.randn(2, 3, 4, 2, 2, generator=generator)
    prompts = prompts.flatten(2) if prompt is None else torch.full((3, 4, 4), prompt)
    return EncodedImages(predict, stable_diffusion_schedule(STEPS), 3.0, latents, prompts, torch.zeros(3, 4, 4))


def its_embedding(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
    return embeddings.view_as(latents)


def error(found: Iterator[Tensor], of: EncodedImages, passes: int) -> float:
    latents = next(islice(found, passes - 1, None))
    return (latents - of.latents).abs().max().item()


@pytest.mark.parametrize("updates", [1, 4])
def test_null_text_is_that_of_the_pool_without_its_early_stop(updates: int):
    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        return rowwise(latents, timesteps, embeddings.unflatten(1, (4, -1)).flatten(2))

    of = encoded(predict)
    settings = InversionSettings(
        guidance_scale=3.0, num_inner_steps=updates, early_stop_epsilon=0.0, early_stop_growth=0.0
    )
    pool = InversionPool[int](predict, of.schedule, settings, of.empty[0], 2)
    done = dict(pool.run((key, *image, key) for key, image in enumerate(zip(of.latents, of.prompts, strict=True))))
    expected = torch.stack([done[key].latents for key in range(3)])
    torch.testing.assert_close(ablations.null_text(of, of.pivot(), updates), expected, rtol=0, atol=1e-4)


def test_a_random_pivot_is_the_image_and_one_noise_in_the_schedules_shares():
    torch.manual_seed(1)
    of = encoded(its_embedding)
    pivot, abar = of.random_pivot(), of.schedule.alphas_cumprod
    assert torch.equal(pivot[0], of.latents)
    noises = [(pivot[t] - abar[t].sqrt() * of.latents) / (1 - abar[t]).sqrt() for t in range(1, STEPS + 1)]
    for noise in noises[1:]:
        torch.testing.assert_close(noise, noises[0], rtol=0, atol=1e-4)
    assert 0.5 < noises[0].std() < 1.5


def test_a_global_null_embedding_finds_the_one_that_is_right_at_every_timestep():
    # this network predicts its embedding: with null = C every guided step is the pivot's
    of = encoded(its_embedding, prompt=0.2)
    assert error(ablations.global_null_text(of, of.pivot()), of, 1) > 0.2
    assert error(ablations.global_null_text(of, of.pivot()), of, 60) < 0.02


def test_tokens_that_are_optimized_change_as_without_the_limit_and_the_others_stay():
    # each channel of this network is a token and does not depend on another
    of = encoded(its_embedding, prompt=0.2)
    all_move, one_moves, none_moves = (
        ablations.null_text(replace(of, tokens=tokens), of.pivot(), 3) for tokens in (None, 1, 0)
    )
    assert not torch.isclose(all_move, none_moves).any()
    assert torch.equal(one_moves[:, :1], all_move[:, :1]) and torch.equal(one_moves[:, 1:], none_moves[:, 1:])


def test_textual_inversion_finds_the_mean_of_the_noises():
    # which is 0: the prompt is then the empty one, and guidance changes nothing
    torch.manual_seed(2)
    of = encoded(its_embedding, prompt=0.5)
    assert error(ablations.textual_inversion(of), of, 1) > 2 * error(ablations.textual_inversion(of), of, 40)


def test_the_command_prints_every_curve_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    plot = tmp_path / "curves.png"
    monkeypatch.setattr(sys, "argv", ["ablations", "--images", "1", "--updates", "1", "--plot", str(plot)])
    ablations.main()
    *_, header, rule, row, _, bound = capsys.readouterr().out.splitlines()
    assert [name.strip() for name in header.split("|")[2:-1]] == [
        "null-text",
        "random caption",
        "random pivot",
        "global null-text",
        "textual inversion",
    ]
    assert rule.count("---") == 6
    iterations, *values = row.split("|")[1:-1]
    assert int(iterations) == 50
    assert all(5 < float(value) <= float(bound.split()[-2]) for value in values)
    assert plot.read_bytes().startswith(b"\x89PNG")
