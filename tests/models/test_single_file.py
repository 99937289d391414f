"""Single-file checkpoints in Stable Diffusion's original layout, against the diffusers folders they come from."""

from pathlib import Path

import pytest
import torch
from helpers.edits import edit, edited_images
from helpers.jobs import arguments
from helpers.ldm import write_checkpoint
from helpers.tiny import captioned, write_shard
from safetensors.torch import load_file, save_file

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription


@pytest.mark.parametrize(
    ("family", "open_clip"), [("tiny_model", False), ("tiny_v_model", True), ("tiny_xl_model", False)]
)
def test_networks_from_a_single_file_equal_those_from_the_folder(
    family: str, open_clip: bool, tmp_path: Path, request: pytest.FixtureRequest
):
    folder = request.getfixturevalue(family)
    file = write_checkpoint(folder, tmp_path / "model.safetensors", open_clip)
    single = StableDiffusion.load(ModelSource(str(file), config=str(folder)))
    whole = StableDiffusion.load(ModelSource(str(folder)))
    expected = dict(whole.named_parameters())
    assert all(torch.equal(found, expected.pop(name)) for name, found in single.named_parameters())
    assert not expected
    torch.manual_seed(0)
    latents, pixels = torch.randn(1, 4, 8, 8), torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    embeddings = whole.embed_prompts(["a small red ring"])
    # outputs are equal to rounding: kernels depend on where the weights lie in memory
    torch.testing.assert_close(single.embed_prompts(["a small red ring"]), embeddings)
    torch.testing.assert_close(single.encode_images(pixels), whole.encode_images(pixels))
    torch.testing.assert_close(single.decode_latents(latents), whole.decode_latents(latents))
    noises = [n.predict(latents, torch.tensor([501]), embeddings) for n in (single, whole)]
    torch.testing.assert_close(*noises, atol=1e-5, rtol=1e-5)


def test_the_job_inverts_and_edits_with_a_single_file(tiny_xl_model: Path, tmp_path: Path):
    file = write_checkpoint(tiny_xl_model, tmp_path / "model.safetensors")
    shard = write_shard(tmp_path / "a.tar", captioned(1))
    for name, source in {"file": [file, f"--model.config={tiny_xl_model}"], "folder": [tiny_xl_model]}.items():
        assert main([*arguments(source[0], shard, tmp_path / name), *source[1:]]) == 0
    (single,), (whole,) = (list(read_inversions(tmp_path / name)) for name in ("file", "folder"))
    torch.testing.assert_close(single.noise_latents, whole.noise_latents, atol=1e-4, rtol=1e-4)
    # the run stores the place of its model, and a flag overrides it
    moved = file.rename(tmp_path / "moved.safetensors")
    place = [f"--model.name={moved}", f"--model.config={tiny_xl_model}"]
    assert main([*edit(tmp_path / "file", tmp_path / "edits"), *place]) == 0
    assert len(edited_images(tmp_path / "edits")) == 1


def test_a_single_file_is_loaded_in_the_requested_precision(tiny_model: Path, tmp_path: Path):
    file = write_checkpoint(tiny_model, tmp_path / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    networks = StableDiffusion.load(ModelSource(str(file), config=str(tiny_model)), "bfloat16")
    assert {p.dtype for p in networks.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for m in (networks.vae, networks.text) for p in m.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("lost", "part"),
    [
        ("model.diffusion_model.out.2.bias", "unet"),
        ("first_stage_model.quant_conv.weight", "vae"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text_encoder"),
    ],
)
def test_a_single_file_that_lacks_weights_is_refused(tiny_model: Path, tmp_path: Path, lost: str, part: str):
    file = write_checkpoint(tiny_model, tmp_path / "model.safetensors")
    weights = load_file(file)
    del weights[lost]
    save_file(weights, file)
    with pytest.raises(ValueError, match=f"{part} lacks 1 weights, .* check that --model.config is of its family"):
        StableDiffusion.load(ModelSource(str(file), config=str(tiny_model)))


@pytest.mark.parametrize(("family", "other"), [("tiny_model", "tiny_xl_model"), ("tiny_xl_model", "tiny_model")])
def test_a_configuration_of_another_family_is_refused(
    family: str, other: str, tmp_path: Path, request: pytest.FixtureRequest
):
    file = write_checkpoint(request.getfixturevalue(family), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"--model\.config"):
        StableDiffusion.load(ModelSource(str(file), config=str(request.getfixturevalue(other))))


def test_a_damaged_file_is_refused(tiny_model: Path, tmp_path: Path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.safetensors' is damaged"):
        StableDiffusion.load(ModelSource(str(file), config=str(tiny_model)))


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("model.ckpt", None, "is a pickled checkpoint, which can run any code; allowed: .safetensors"),
        ("absent.safetensors", "CONFIG", "the file does not exist"),
        (
            "model.safetensors",
            None,
            "holds only weights: add --model.config with a diffusers checkpoint folder or hub id",
        ),
        ("model.safetensors", "/no/such/config", "'/no/such/config' is not a folder: give a diffusers checkpoint"),
        ("demo", "CONFIG", "is not a .safetensors file"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason(
    tiny_model: Path, tmp_path: Path, name: str, config: str | None, words: str
):
    (tmp_path / "model.safetensors").touch()
    path = name if name == "demo" else str(tmp_path / name)
    with pytest.raises(ValueError, match=words):
        ModelDescription.of(ModelSource(path, config=str(tiny_model) if config == "CONFIG" else config))
