"""A training that was ended goes on as if it had not been, and refuses a checkpoint of another recipe."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nti_batch.demo.training_loop import Batch, Stage, run_stage

STEPS = 30


class EndedError(Exception):
    """The training is ended by someone."""


def make_stage(average_decay: float, on_batch: Callable[[], None] = lambda: None) -> Stage:
    torch.manual_seed(0)
    network = nn.Linear(3, 1)

    def make_batch(generator: torch.Generator) -> Batch:
        on_batch()
        inputs = torch.randn(8, 3, generator=generator)
        return {"inputs": inputs, "targets": inputs.sum(1, keepdim=True)}

    def losses(batch: Batch) -> dict[str, Tensor]:
        return {"mse": (network(batch["inputs"]) - batch["targets"]).square().mean()}

    return Stage("test", network, make_batch, losses, STEPS, 0.1, lambda progress: 1 - progress, average_decay, 7)


def weights(stage: Stage) -> Tensor:
    return torch.cat([p.detach().flatten() for p in stage.networks.parameters()])


def test_an_ended_training_goes_on_as_if_it_had_not_been_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nti_batch.demo.training_loop.SECONDS_PER_CHECKPOINT", -1.0)
    whole = make_stage(0.9)
    run_stage(whole, tmp_path / "whole.safetensors", "recipe")

    batches = 0

    def end_in_the_middle() -> None:
        nonlocal batches
        batches += 1
        if batches == 12:
            raise EndedError

    with pytest.raises(EndedError):
        run_stage(make_stage(0.9, end_in_the_middle), tmp_path / "ended.safetensors", "recipe")
    resumed = make_stage(0.9)
    before = weights(resumed)
    run_stage(resumed, tmp_path / "ended.safetensors", "recipe")
    assert not torch.equal(weights(resumed), before)
    assert torch.equal(weights(resumed), weights(whole))


def test_a_finished_stage_is_not_trained_again(tmp_path: Path):
    first = make_stage(0.0)
    run_stage(first, tmp_path / "state.safetensors", "recipe")

    def refuse() -> None:
        raise AssertionError("a finished stage needs no batch")

    again = make_stage(0.0, refuse)
    run_stage(again, tmp_path / "state.safetensors", "recipe")
    assert torch.equal(weights(again), weights(first))


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path):
    run_stage(make_stage(0.0), tmp_path / "state.safetensors", "recipe")
    with pytest.raises(ValueError, match="another recipe"):
        run_stage(make_stage(0.0), tmp_path / "state.safetensors", "another")


def test_training_reduces_the_loss_and_averages_its_weights(tmp_path: Path):
    average, last = make_stage(0.9), make_stage(0.0)
    for stage, name in ((average, "average"), (last, "last")):
        before = weights(stage)
        run_stage(stage, tmp_path / f"{name}.safetensors", "recipe")
        truth = torch.tensor([1.0, 1.0, 1.0, 0.0])
        assert (weights(stage) - truth).norm() < (before - truth).norm()
    assert not torch.equal(weights(average), weights(last))
