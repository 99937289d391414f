"""Editing and inverting single images in Python."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.edits import difference
from helpers.image_files import encode, gradient
from helpers.jobs import arguments
from helpers.tiny import captioned, png, write_model, write_shard
from PIL import Image

import nti_batch
from nti_batch import (
    Editor,
    EditSettings,
    InversionSettings,
    ModelSource,
    StoredInversion,
    edit_image,
    invert_image,
    load_model,
    read_inversions,
)
from nti_batch.cli import main
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import Original

CAPTION = "a small red circle, number 0"
QUICK: dict[str, Any] = {"num_steps": 3, "settings": InversionSettings(num_inner_steps=2)}


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    shard = write_shard(folder / "a.tar", captioned(2))
    assert main(arguments(tiny_model, shard, folder / "out")) == 0
    return folder / "out"


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_every_public_name_is_there():
    for name in nti_batch.__all__:
        assert getattr(nti_batch, name).__doc__


def test_an_editor_loads_once_and_edits_many(run: Path, monkeypatch: pytest.MonkeyPatch):
    real: Callable[..., StableDiffusion] = StableDiffusion.load
    loads: list[object] = []

    def counted(*arguments: Any) -> StableDiffusion:
        loads.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(StableDiffusion, "load", counted)
    editor = Editor(run)
    settings = EditSettings(kind="replace")
    edits = {i.key: editor.edit(i, i.prompt.replace("red", "blue"), settings) for i in read_inversions(run)}
    rebuilt = [editor.edit(inversion) for inversion in read_inversions(run)]
    assert len(loads) == 1 and len(edits) == len(rebuilt) == 2
    (first,) = read_inversions(run, [("a", "000")])
    alone = edit_image(first, first.prompt.replace("red", "blue"), settings)
    assert len(loads) == 2
    assert difference(as_tensor(alone), as_tensor(edits["000"])) <= 1


def test_an_editor_takes_a_run_a_model_and_its_place(run: Path, tiny_model: Path):
    (inversion,) = read_inversions(run, [("a", "000")])
    expected = as_tensor(edit_image(inversion))
    for model in (run, str(run), load_model(tiny_model), str(tiny_model), ModelSource(str(tiny_model))):
        assert difference(as_tensor(Editor(model).edit(inversion)), expected) <= 1


def test_an_editor_refuses_the_inversions_of_another_model(run: Path, tmp_path: Path):
    editor = Editor(write_model(tmp_path / "other", seed=1))
    (inversion,) = read_inversions(run, [("a", "000")])
    with pytest.raises(ValueError, match="is another one than the run was made with"):
        editor.edit(inversion)
    with pytest.raises(ValueError, match="'/no/such/run' is not a folder"):
        Editor("/no/such/run")


def assert_same(one: StoredInversion, other: StoredInversion) -> None:
    torch.testing.assert_close(one.noise_latents, other.noise_latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.null_embeddings, other.null_embeddings, atol=1e-3, rtol=1e-3)
    assert one.metadata["psnr"] == pytest.approx(other.metadata["psnr"], abs=0.02)
    assert one.metadata.keys() | {"generation", "origin"} == other.metadata.keys()
    assert one.prompt == other.prompt


@torch.inference_mode()
def test_one_image_is_inverted_as_by_the_job(run: Path, tiny_model: Path, tmp_path: Path):
    """Under inference mode, too, in which torch computes no gradients."""
    (expected,) = read_inversions(run, [("a", "000")])
    (tmp_path / "cup.png").write_bytes(png(0))
    found = invert_image(tmp_path / "cup.png", f" {CAPTION}\n", tiny_model, **QUICK)
    assert (found.key, found.settings.fingerprint) == ("cup", expected.settings.fingerprint)
    assert_same(found, expected)
    assert found.pixels is not None and found.pixels.shape == (3, 16, 16)
    image = Image.open(io.BytesIO(png(0)))
    assert_same(invert_image(image, CAPTION, load_model(tiny_model), **QUICK), expected)
    edited = Editor(tiny_model).edit(found, CAPTION.replace("red", "blue"))
    assert edited.size == (16, 16)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "F", "LAB"])
def test_an_image_of_any_mode_and_shape_is_inverted(mode: str, tiny_model: Path):
    base = gradient(20, 30)
    image = base.convert("L").convert("F") if mode == "F" else _converted(base, mode)
    found = invert_image(image, CAPTION, tiny_model, fit="pad", height=16, width=24, **QUICK)
    assert found.original == Original(20, 30, "pad")
    assert found.noise_latents.shape == (4, 8, 12)


def test_an_image_in_memory_keeps_its_orientation(tiny_model: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encode(gradient(20, 30), "JPEG", exif=exif))) as image:
        found = invert_image(image, CAPTION, tiny_model, **QUICK)
    assert found.original == Original(30, 20, "crop")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if mode != "LAB":
        return image.convert(mode)
    from PIL import ImageCms

    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert converted
    return converted


def test_what_cannot_be_inverted_is_refused(tiny_model: Path, tmp_path: Path):
    image = gradient(16, 16)
    with pytest.raises(ValueError, match="the caption is empty"):
        invert_image(image, " ", tiny_model)
    with pytest.raises(ValueError, match="does not fit the model's VAE"):
        invert_image(image, CAPTION, tiny_model, height=15)
    with pytest.raises(ValueError, match="num_steps is 0"):
        invert_image(image, CAPTION, tiny_model, num_steps=0)
    (tmp_path / "x.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="image is not a whole"):
        invert_image(tmp_path / "x.png", CAPTION, tiny_model)
    networks = load_model(tiny_model)
    with pytest.raises(ValueError, match="was not loaded by load_model"):
        invert_image(image, CAPTION, StableDiffusion(networks.text, networks.vae, networks.unet, networks.scheduler))
