"""The recipe writes a model that loads, small enough for the package, and leaves no training state behind."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nti_batch.demo.stages import UNetRecipe, VaeRecipe
from nti_batch.demo.train import Recipe, train
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion

RECIPE = Recipe(
    num_scenes=12,
    num_textures=4,
    vae=VaeRecipe(steps=2),
    unet=UNetRecipe(steps=2),
    fine_tuning=UNetRecipe(steps=2),
)


def embeddings(folder: Path) -> torch.Tensor:
    return StableDiffusion.load(ModelSource(str(folder))).embed_prompts(["a red ring"])


def test_a_training_writes_a_small_model_that_loads(tmp_path: Path):
    train(tmp_path / "model", RECIPE, torch.device("cpu"))
    assert embeddings(tmp_path / "model").shape == (1, 77, 64)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert not (tmp_path / "model" / "training").exists()


def test_the_same_recipe_gives_the_same_model(tmp_path: Path):
    for name in ("first", "second"):
        train(tmp_path / name, RECIPE, torch.device("cpu"))
    first, second = (embeddings(tmp_path / name) for name in ("first", "second"))
    torch.testing.assert_close(first, second)


def test_a_training_does_not_go_on_with_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.rmtree", lambda path: None)
    train(tmp_path, RECIPE, torch.device("cpu"))
    other = replace(RECIPE, unet=UNetRecipe(steps=3))
    with pytest.raises(ValueError, match=r"unet\.safetensors.* another recipe"):
        train(tmp_path, other, torch.device("cpu"))
