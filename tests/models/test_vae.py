"""Another VAE than the model's own."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.edits import edit
from helpers.jobs import arguments, expect_one_sentence
from helpers.ldm import write_checkpoint
from helpers.models import edit_json
from helpers.tiny import captioned, png, write_model, write_shard
from safetensors.torch import load_file, save_file

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.data.images import decode_image
from nti_batch.models.fingerprint import model_fingerprint
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription
from nti_batch.scores.metrics import psnr

PIXELS = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shapes with other weights."""
    return write_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards") / "a.tar", captioned(1))


def vae_alone(model: Path, folder: Path) -> Path:
    """Copy the VAE of a model into a folder of its own."""
    shutil.copytree(model / "vae", folder)
    return folder


def original_vae_file(model: Path, path: Path) -> Path:
    """Write the VAE in Stable Diffusion's original layout, without the prefix of a whole model."""
    weights = load_file(write_checkpoint(model, path.with_suffix(".whole.safetensors")))
    prefix = "first_stage_model."
    vae = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    save_file(vae | {"model_ema.decay": torch.tensor(1.0)}, path)
    return path


def places_of_a_vae(model: Path, folder: Path) -> dict[str, Path]:
    """A VAE in every form that `model.vae` takes."""
    return {
        "model": model,
        "folder": vae_alone(model, folder / "vae"),
        "diffusers": Path(shutil.copy(model / "vae" / "diffusion_pytorch_model.safetensors", folder / "v.safetensors")),
        "original": original_vae_file(model, folder / "original.safetensors"),
        "checkpoint": write_checkpoint(model, folder / "checkpoint.safetensors"),
    }


def test_a_vae_of_every_form_replaces_the_models_own(tiny_model: Path, other_model: Path, tmp_path: Path):
    other, own = (StableDiffusion.load(ModelSource(str(m))) for m in (other_model, tiny_model))
    expected = other.encode_images(PIXELS)
    assert not torch.allclose(own.encode_images(PIXELS), expected)
    prints = set()
    for form, place in places_of_a_vae(other_model, tmp_path).items():
        source = ModelSource(str(tiny_model), vae=str(place))
        networks = StableDiffusion.load(source)
        torch.testing.assert_close(networks.encode_images(PIXELS), expected, msg=form)
        assert torch.equal(next(networks.unet.parameters()), next(own.unet.parameters()))
        prints.add(model_fingerprint(source))
    assert len(prints) == 5 - 1  # the two folders hold the same files under other names


def test_the_vae_of_a_single_file_is_replaced_too(tiny_model: Path, other_model: Path, tmp_path: Path):
    file = write_checkpoint(tiny_model, tmp_path / "model.safetensors")
    source = ModelSource(str(file), config=str(tiny_model), vae=str(other_model))
    other = StableDiffusion.load(ModelSource(str(other_model)))
    torch.testing.assert_close(StableDiffusion.load(source).encode_images(PIXELS), other.encode_images(PIXELS))


def test_a_vae_on_the_hub_is_found_with_and_without_a_subfolder(
    tiny_model: Path, other_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Only the JSON files are asked for: the weights follow from the place of the configuration."""
    repositories = {"user/model": other_model, "user/vae": vae_alone(other_model, tmp_path / "vae")}

    def download(name: str, file: str, revision: str | None) -> str:
        path = repositories[name] / file
        if not path.is_file():
            raise OSError("404")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for name, subfolder in {"user/model": "vae", "user/vae": ""}.items():
        source = ModelSource(str(tiny_model), vae=name)
        assert ModelDescription.of(source).pixels_per_latent == 2
        assert source.of_part("vae").subfolder("vae") == subfolder
        assert source.of_part("unet") is source


def test_a_run_records_its_vae_and_refuses_another(
    tiny_model: Path, other_model: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    vae = vae_alone(other_model, tmp_path / "vae")
    job = arguments(tiny_model, shard, tmp_path / "out")
    assert main([*job, f"--model.vae={vae}"]) == 0
    (stored,) = read_inversions(tmp_path / "out")
    assert stored.settings.source.vae == str(vae)
    networks = StableDiffusion.load(ModelSource(str(tiny_model), vae=str(vae)))
    assert stored.metadata["psnr_vae"] == pytest.approx(_round_trip(networks), abs=0.01)
    assert main(["verify", str(tmp_path / "out"), "--recompute=1"]) == 0
    assert main(job) == 2
    assert "model.vae" in capsys.readouterr().err
    # another content of the same place
    shutil.copy(tiny_model / "vae" / "diffusion_pytorch_model.safetensors", vae)
    assert main([*job, f"--model.vae={vae}"]) == 2
    assert "vae=sha256:" in capsys.readouterr().err
    assert main(edit(tmp_path / "out", tmp_path / "edits")) == 2
    assert "is another one than the run was made with" in capsys.readouterr().err


def _round_trip(networks: StableDiffusion) -> float:
    pixels = decode_image(png(0), 16, 16)[None]
    return psnr(networks.decode_latents(networks.encode_images(pixels)), pixels / 255).item()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scaling_factor": 0.13025}, "scaling_factor is 0.13025, allowed: 0.18215"),
        ({"latent_channels": 16}, "latent_channels is 16, allowed: 4, which the UNet takes"),
        ({"_class_name": "ControlNetModel"}, "_class_name is 'ControlNetModel'"),
        ({"norm_num_groups": 4, "block_out_channels": [8, 8]}, "does not load: vae"),
    ],
)
def test_a_vae_that_does_not_fit_ends_with_one_sentence(
    changes: dict[str, object], words: str, tiny_model: Path, shard: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    vae = vae_alone(tiny_model, tmp_path / "vae")
    edit_json(vae / "config.json", **changes)
    assert main([*arguments(tiny_model, shard, tmp_path / "out"), f"--model.vae={vae}"]) == 2
    expect_one_sentence(words, capsys=capsys)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.safetensors", "absent.safetensors': the file does not exist"),
        ("vae.ckpt", "is a pickled checkpoint"),
        ("no/such/folder", "is not a folder"),
        (".", "has no vae/config.json"),
    ],
)
def test_a_place_without_a_vae_ends_with_one_sentence(
    name: str, words: str, tiny_model: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*arguments(tiny_model, shard, tmp_path / "out"), f"--model.vae={tmp_path / name}"]) == 2
    expect_one_sentence(words, capsys=capsys)
