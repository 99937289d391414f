"""Scores by networks against second implementations, and the reports of missing weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers.tiny_scores import squeezenet_features, torchmetrics_lpips, write_clip, write_dino, write_lpips
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from nti_batch.demo.scenes import draw, unseen_scenes
from nti_batch.scores.learned import ClipScore, LearnedScores, StructureDistance
from nti_batch.scores.lpips import Lpips

CPU = torch.device("cpu")
PROMPTS = ["a small red circle", "a large blue star on a white background", "green"]


def images(seed: int = 0) -> Tensor:
    """Draw images, [3, 3, 64, 64], rounded to 8 bits."""
    drawn = torch.stack([draw(scene) for scene in unseen_scenes(3, seed)])
    return (drawn * 255).round() / 255


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("weights") / "clip")


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dino(tmp_path_factory.mktemp("weights") / "dino")


@pytest.fixture
def lpips_net(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    return torchmetrics_lpips(monkeypatch)


@torch.no_grad()
def clip_cosine(model: CLIPModel, tokenizer: CLIPTokenizer, image: Tensor, prompt: str) -> float:
    """Resize by Pillow, run each network alone, and compare the embeddings."""
    array = (image * 255).round().byte().permute(1, 2, 0).numpy()
    resized = np.asarray(Image.fromarray(array).resize((16, 16), Image.Resampling.BICUBIC)) / 255
    normal = (resized - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    seen = model.vision_model(torch.tensor(normal.transpose(2, 0, 1)[None], dtype=torch.float32)).pooler_output
    tokens = torch.tensor([tokenizer(prompt).input_ids])
    read = model.text_model(tokens).last_hidden_state[:, -1]
    image, text = model.visual_projection(seen)[0], model.text_projection(read)[0]
    return float(image @ text / (image.square().sum() * text.square().sum()).sqrt())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_clip_score_is_the_cosine_of_the_embeddings_and_never_negative(tmp_path: Path, sign: float):
    folder = write_clip(tmp_path / "clip", sign=sign)
    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    cosines = [clip_cosine(model, tokenizer, *pair) for pair in zip(images(), PROMPTS, strict=True)]
    expected = [max(0.0, 100 * cosine) for cosine in cosines]
    assert ClipScore(folder, CPU)(images(), PROMPTS).tolist() == pytest.approx(expected, abs=1e-3)


def test_a_long_prompt_is_truncated_where_the_tokenizer_names_no_length(tmp_path: Path):
    folder = write_clip(tmp_path / "clip")
    long = ["a red circle on the left " * 40]
    expected = ClipScore(folder, CPU)(images()[:1], long).tolist()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert ClipScore(folder, CPU)(images()[:1], long).tolist() == expected


def test_clip_images_are_resized_by_pillow_even_where_torchvision_is_installed(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = ClipScore(clip_folder, CPU)(images(), PROMPTS)
    monkeypatch.setattr(transformers, "CLIPImageProcessor", None)  # torchvision's, where that is installed
    assert torch.equal(ClipScore(clip_folder, CPU)(images(), PROMPTS), expected)


def similarity(model: ViTModel, image: Tensor, white: float) -> Tensor:
    """Return the cosines of the last layer's keys, computed layer by layer and pair by pair."""
    resized = nn.functional.interpolate(image[None] * white, (16, 16), mode="bilinear")
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    hidden = model.embeddings((resized - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))
    for layer in model.layers[:-1]:
        hidden = layer(hidden)
    last = model.layers[-1]
    keys = last.attention.k_proj(last.layernorm_before(hidden))[0]
    return torch.tensor([[float(a @ b / (a.norm() * b.norm())) for b in keys] for a in keys])


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_structure_distance_compares_the_similarities_of_keys(dino_folder: Path, white: float):
    model = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False)
    a, b = images(0), images(1)
    with torch.no_grad():
        expected = [
            (similarity(model, x, white) - similarity(model, y, white)).square().mean().item()
            for x, y in zip(a, b, strict=True)
        ]
    assert min(expected) > 1e-5
    found = StructureDistance(dino_folder, CPU)(a, b, white)
    assert found.tolist() == pytest.approx(expected, rel=1e-3)


def test_equal_images_have_no_structure_distance(dino_folder: Path):
    assert StructureDistance(dino_folder, CPU)(images(), images()).tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [17, 64, 70])
def test_lpips_equals_that_of_torchmetrics(lpips_net: nn.Module, tmp_path: Path, size: int):
    ours = Lpips(write_lpips(tmp_path / "lpips", lpips_net), CPU)
    a, b = (nn.functional.interpolate(images(seed), size) for seed in (0, 1))
    expected = lpips_net(a, b, normalize=True).flatten()
    assert expected.min() > 1e-3
    assert torch.allclose(ours(a, b), expected, rtol=1e-4)
    assert ours(a, a).tolist() == [0, 0, 0]


def test_lpips_of_chosen_pixels_averages_the_resized_maps(lpips_net: nn.Module, tmp_path: Path):
    ours = Lpips(write_lpips(tmp_path / "lpips", lpips_net), CPU)
    a, b = images(0), images(1)
    where = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.2
    lpips_net.spatial = True  # type: ignore[assignment]  # a flag, not a module
    maps = lpips_net(a, b, normalize=True)[:, 0]
    expected = torch.stack([maps[k][where[k]].mean() for k in range(3)])
    assert torch.allclose(ours(a, b, where), expected, rtol=1e-4)


def test_the_backbone_has_squeezenets_number_of_parameters():
    """The published number is 1,235,496, of which 513,000 are the classifier's."""
    assert sum(p.numel() for p in squeezenet_features().parameters()) == 1_235_496 - 513_000


def test_a_folder_with_all_weights_misses_none(
    clip_folder: Path, dino_folder: Path, lpips_net: nn.Module, tmp_path: Path
):
    (tmp_path / "clip").symlink_to(clip_folder)
    (tmp_path / "dino").symlink_to(dino_folder)
    write_lpips(tmp_path / "lpips", lpips_net)
    scores = LearnedScores.load(tmp_path, CPU)
    assert scores.clip and scores.structure and scores.lpips and scores.missing == ""


def test_scores_without_weights_are_left_out_in_one_line(dino_folder: Path, tmp_path: Path):
    (tmp_path / "dino").symlink_to(dino_folder)
    scores = LearnedScores.load(tmp_path, CPU)
    assert scores.structure and not scores.clip and not scores.lpips
    assert scores.missing == f"left out, since '{tmp_path}' has no weights for them: CLIP score (clip), LPIPS (lpips)"


def test_no_folder_leaves_all_out():
    scores = LearnedScores.load(None, CPU)
    assert (scores.clip, scores.structure, scores.lpips) == (None, None, None)
    assert scores.missing == "CLIP score, structure distance and LPIPS are left out: no folder of weights is given"


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere' is no folder"):
        LearnedScores.load(tmp_path / "nowhere", CPU)


@pytest.mark.parametrize("part", ["clip", "dino", "lpips"])
def test_an_empty_folder_of_a_score_is_refused_by_name(tmp_path: Path, part: str):
    (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match=rf"{part}\S* does not load"):
        LearnedScores.load(tmp_path, CPU)


@pytest.mark.parametrize("write", [write_clip, write_dino])
def test_pickled_weights_are_not_read(tmp_path: Path, write: object):
    assert callable(write)
    folder = write(tmp_path / ("clip" if write is write_clip else "dino"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"does not load: .*safetensors"):
        LearnedScores.load(tmp_path, CPU)


def test_missing_weights_are_refused(tmp_path: Path):
    folder = write_dino(tmp_path / "dino")
    weights = load_file(folder / "model.safetensors")
    lost = sorted(weights)[0]
    del weights[lost]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights, the first is"):
        LearnedScores.load(tmp_path, CPU)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    (tmp_path / "lpips").mkdir()
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "lpips" / "model.safetensors")
    with pytest.raises(ValueError, match="it is not LPIPS's SqueezeNet"):
        LearnedScores.load(tmp_path, CPU)
