"""`nti-batch check` finds a healthy model healthy, and names the cause of each deliberate fault."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.loras import needs_peft, write_lora
from helpers.models import edit_json
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from nti_batch.cli import main
from nti_batch.health.images import ColourEdit, edit_of, load_photographs
from nti_batch.health.measure import colour_way, psnr_outside
from nti_batch.models.source import EMBEDDED_MODEL


def change_weights(model: Path, part: str, noise: float = 0.0, factor: float = 1.0) -> None:
    """Multiply the weights of a part, and add noise in units of each weight's standard deviation."""
    (path,) = (model / part).glob("*.safetensors")
    generator = torch.Generator().manual_seed(0)

    def changed(weight: Tensor) -> Tensor:
        added = noise * weight.float().std(correction=0) * torch.randn(weight.shape, generator=generator)
        return (factor * weight.float() + added).to(weight.dtype)

    save_file({name: changed(weight) for name, weight in load_file(path).items()}, path, {"format": "pt"})


def change_text_encoder(model: Path) -> None:
    """Write a text encoder of another seed."""
    folder = model / "text_encoder"
    torch.manual_seed(1)
    CLIPTextModel(CLIPTextConfig.from_pretrained(folder)).half().save_pretrained(folder)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "prediction type": (
        lambda model: edit_json(model / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"),
        "prediction_type in scheduler/scheduler_config.json is 'v_prediction', and the UNet predicts 'epsilon'",
    ),
    "noise schedule": (
        lambda model: edit_json(model / "scheduler" / "scheduler_config.json", beta_end=0.012),
        "scheduler/scheduler_config.json has the betas of another family",
    ),
    "scaling factor": (
        lambda model: edit_json(model / "vae" / "config.json", scaling_factor=0.18215),
        "scaling_factor in vae/config.json is 0.18215",
    ),
    "VAE": (lambda model: change_weights(model, "vae", noise=0.1), "the VAE's weights are damaged"),
    "VAE that overflows": (lambda model: change_weights(model, "vae", factor=1e4), "the VAE overflows"),
    "text encoder": (change_text_encoder, "the text encoder or the tokenizer is damaged or another model's"),
    "UNet": (lambda model: change_weights(model, "unet", noise=2.0), "the UNet's weights are damaged"),
}
"""What changes a copy of the embedded model, and the beginning of the cause that is to be found."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_deliberate_fault_is_found_and_its_cause_is_the_only_one(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    break_model, cause = FAULTS[name]
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    break_model(tmp_path / "model")
    assert main(["check", str(tmp_path / "model"), f"--output={tmp_path / 'check'}", "--num_steps=1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (found,) = [line for line in lines if line.startswith("likely cause: ")]
    assert found.startswith(f"likely cause: {cause}")
    assert (tmp_path / "check" / "check.md").read_text().splitlines() == lines[:-1]


def test_two_faults_that_are_independent_are_both_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    for name in ("scaling factor", "prediction type"):
        FAULTS[name][0](tmp_path / "model")
    assert main(["check", str(tmp_path / "model"), f"--output={tmp_path / 'check'}", "--num_steps=1"]) == 1
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("likely cause: ")]
    assert [line.split()[2] for line in found] == ["scaling_factor", "prediction_type"]


@needs_peft
def test_another_vae_and_loras_are_checked_with_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "other")
    change_weights(tmp_path / "other", "vae", noise=0.1)
    # the layer and the text encoder are both 64 channels wide
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    one, two = (write_lora(tmp_path / f"{seed}.safetensors", seed, 64, layer) for seed in (0, 1))
    check = ["check", "demo", f"--output={tmp_path / 'check'}", "--num_steps=1", f"--vae={tmp_path / 'other'}"]
    assert main([*check, "--loras", f"{one}=0.001", f"{two}=0"]) == 1
    out = capsys.readouterr().out
    assert f"model: demo, VAE {tmp_path / 'other'}, LoRA {one}=0.001, LoRA {two}=0.0, fingerprint" in out
    assert "likely cause: the VAE's weights are damaged" in out and "lora=sha256:" in out


def test_the_embedded_model_is_healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "demo", f"--output={tmp_path}", "--num_steps=10"]) == 0
    out = capsys.readouterr().out
    assert "the model is healthy" in out and "WRONG" not in out
    for expected in ("fingerprint sha256:", "torch 2", "images an hour", "GiB of memory", "CVPR 2023", "ICLR 2024"):
        assert expected in out
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.width > 700


def test_a_model_of_random_weights_is_not(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(tiny_model), f"--output={tmp_path}", "--num_steps=1"]) == 1
    out = capsys.readouterr().out
    assert "family: unknown" in out and "the VAE's weights are damaged" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "'nowhere' is not a folder"), (["demo", "--num_steps=0"], "num_steps is 0"), ([], "model")],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    try:
        code = main(["check", *arguments, f"--output={tmp_path / 'out'}"])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()


EDIT = ColourEdit("white", "red", ("square",), (0.25, 0.25, 0.75, 0.75))


def square(colour: tuple[float, float, float]) -> Tensor:
    """Draw a square in the middle of a black image."""
    image = torch.zeros(3, 16, 16)
    image[:, 4:12, 4:12] = torch.tensor(colour)[:, None, None]
    return image


@pytest.mark.parametrize(
    ("colour", "way"),
    [((1.0, 1.0, 1.0), 0.0), ((0.8, 0.1, 0.1), 1.0), ((0.9, 0.55, 0.55), 0.5), ((0.1, 0.1, 0.8), 0.23)],
)
def test_the_way_of_a_colour_is_its_share_of_the_asked_change(colour: tuple[float, float, float], way: float):
    assert colour_way(EDIT, square((1.0, 1.0, 1.0)), square(colour)) == pytest.approx(way, abs=0.01)


def test_what_an_edit_changes_inside_of_the_box_does_not_count_outside():
    assert psnr_outside(EDIT, square((1, 1, 1)), square((0.8, 0.1, 0.1))) == pytest.approx(100)
    outside = psnr_outside(EDIT, square((1, 1, 1)), square((1, 1, 1)) + 0.1)
    assert outside == pytest.approx(20)


def test_the_photographs_have_the_models_size_and_their_edits_change_a_word_of_the_caption():
    images = load_photographs(24, 32)
    assert {tuple(image.pixels.shape) for image in images.values()} == {(3, 24, 32)}
    edits = {name: edit.prompt(image.prompt) for name, image in images.items() if (edit := edit_of(image))}
    assert edits == {
        "astronaut": "a smiling woman with short hair in a green space suit",
        "coffee": "a blue cup of espresso with a spoon on a blue saucer on a wooden table",
    }
