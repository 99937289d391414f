"""The frozen networks against diffusers and transformers themselves, and the models that are refused."""

import shutil
import socket
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from helpers.models import edit_json
from safetensors.torch import load_file, save_file

from nti_batch.diffusion.ddim import ddim_step
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch):
    """No connection can be made."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(folder: Path, precision: Precision = "float32") -> StableDiffusion:
    return StableDiffusion.load(ModelSource(str(folder)), precision)


def test_a_folder_loads_without_network_and_frozen(tiny_model: Path, offline: None):
    networks = load(tiny_model)
    assert not any(p.requires_grad for p in networks.parameters())
    assert not any(m.training for m in networks.modules())


@pytest.mark.parametrize("num_steps", [1, 10, 50, 333])
def test_the_schedule_is_the_one_of_diffusers(tiny_model: Path, num_steps: int):
    schedule = load(tiny_model).schedule(num_steps)
    scheduler = DDIMScheduler.from_pretrained(tiny_model, subfolder="scheduler")
    scheduler.set_timesteps(num_steps)
    assert schedule.network_timesteps[1:].flip(0).tolist() == scheduler.timesteps.tolist()
    torch.testing.assert_close(schedule.alphas_cumprod[1:].flip(0), scheduler.alphas_cumprod[scheduler.timesteps])
    assert schedule.alphas_cumprod[0] == scheduler.final_alpha_cumprod


@pytest.mark.parametrize("folder", ["tiny_model", "tiny_v_model"])
def test_a_step_with_the_predicted_noise_is_the_step_of_diffusers(folder: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(folder)
    networks, scheduler = load(path), DDIMScheduler.from_pretrained(path, subfolder="scheduler")
    scheduler.set_timesteps(50)
    schedule, latents, prompt = networks.schedule(50), torch.randn(1, 4, 8, 8), networks.embed_prompts(["a red ring"])
    for t in (50, 20, 1):
        timestep, here = scheduler.timesteps[50 - t], torch.tensor([t])
        with torch.no_grad():
            predicted = networks.unet(latents, timestep, prompt).sample
            prediction = networks.predict(latents, schedule.network_timesteps[here], prompt)
        expected = scheduler.step(predicted, timestep, latents).prev_sample
        torch.testing.assert_close(
            ddim_step(schedule, latents, prediction, here, here - 1), expected, atol=1e-5, rtol=1e-5
        )


def test_each_image_of_a_batch_has_its_own_timestep(tiny_model: Path):
    networks = load(tiny_model)
    torch.manual_seed(0)
    latents, prompts = torch.randn(3, 4, 8, 8), networks.embed_prompts(["a", "red", "ring"])
    timesteps = torch.tensor([981, 1, 401])
    with torch.no_grad():
        together = networks.predict(latents, timesteps, prompts)
        for i in range(3):
            alone = networks.predict(latents[i : i + 1], timesteps[i : i + 1], prompts[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_prompts_are_padded_and_truncated_to_the_models_length(tiny_model: Path):
    networks = load(tiny_model)
    short, long, longer = networks.embed_prompts(["", "red " * 75, "red " * 200])
    assert short.shape == (77, 8)
    torch.testing.assert_close(long, longer, atol=1e-5, rtol=1e-5)  # rows of one batch may be rounded differently


def test_encoding_takes_the_posteriors_mean_and_decoding_undoes_the_scaling(tiny_model: Path):
    networks, pixels = load(tiny_model), torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        mean = networks.vae.encode(pixels / 127.5 - 1).latent_dist.mean
        expected = (networks.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    latents = networks.encode_images(pixels)
    torch.testing.assert_close(latents, mean * networks.vae.config.scaling_factor)
    torch.testing.assert_close(networks.decode_latents(latents), expected, atol=1e-5, rtol=1e-5)


def test_a_bfloat16_unet_gives_float32_noise_and_a_like_gradient(tiny_model: Path):
    gradients = []
    for precision in ("float32", "bfloat16"):
        networks = load(tiny_model, precision)
        torch.manual_seed(0)
        latents, embeddings = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 8, requires_grad=True)
        noise = networks.predict(latents, torch.tensor([501]), embeddings)
        assert noise.dtype == torch.float32
        gradients.append(torch.autograd.grad(noise.square().sum(), embeddings)[0])
    assert gradients[1].dtype == torch.float32
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


def test_a_missing_folder_is_refused():
    with pytest.raises(
        ValueError, match=r"'/no/such/model' is not a folder: give a diffusers checkpoint folder, a hub id"
    ):
        ModelDescription.of(ModelSource("/no/such/model"))


def test_a_folder_without_a_unet_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no unet/config.json: give a diffusers checkpoint folder with unet, vae"):
        ModelDescription.of(ModelSource(str(tmp_path)))


@pytest.mark.parametrize(
    ("part", "file", "change", "words"),
    [
        (
            "unet",
            "config.json",
            {"addition_embed_type": "text_image"},
            "addition_embed_type is 'text_image', allowed: null",
        ),
        ("unet", "config.json", {"in_channels": 9}, r"takes 9 channels and gives 4 \(an inpainting"),
        (
            "scheduler",
            "scheduler_config.json",
            {"prediction_type": "sample"},
            "prediction_type is 'sample', allowed: \"epsilon\" or",
        ),
    ],
)
def test_other_families_are_refused_in_words(
    tiny_model: Path, tmp_path: Path, part: str, file: str, change: dict[str, object], words: str
):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    edit_json(folder / part / file, **change)
    with pytest.raises(ValueError, match=words):
        ModelDescription.of(ModelSource(str(folder)))


def test_a_flow_model_is_refused_in_words(tmp_path: Path):
    (tmp_path / "transformer").mkdir()
    with pytest.raises(ValueError, match="has a transformer instead of a UNet"):
        ModelDescription.of(ModelSource(str(tmp_path)))


@pytest.mark.parametrize(("part", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")])
def test_a_pickled_checkpoint_is_refused_in_words(tiny_model: Path, tmp_path: Path, part: str, stem: str):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    for weights in (folder / part).glob("*.safetensors"):
        weights.unlink()
    torch.save({}, folder / part / f"{stem}.bin")
    with pytest.raises(ValueError, match="Allowed: safetensors weights, since a pickled checkpoint"):
        load(folder)


def test_a_text_encoder_in_the_hubs_layout_gives_the_same_embeddings(tiny_model: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = folder / "text_encoder" / "model.safetensors"
    prefixed = {f"text_model.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file(prefixed | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, weights, {"format": "pt"})
    assert torch.equal(load(folder).embed_prompts(["a red ring"]), load(tiny_model).embed_prompts(["a red ring"]))


@pytest.mark.parametrize(
    ("part", "file"), [("unet", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")]
)
def test_a_model_that_lacks_weights_is_refused(tiny_model: Path, tmp_path: Path, part: str, file: str):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors = load_file(folder / part / file)
    lost = next(iter(tensors))
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != lost}, folder / part / file, {"format": "pt"}
    )
    with pytest.raises(ValueError, match=f"{part} lacks 1 weights, the first is"):
        load(folder)


def test_sizes_that_the_vae_cannot_take_are_refused(tiny_model: Path):
    description = ModelDescription.of(ModelSource(str(tiny_model)))
    assert description.size == (16, 16) and description.pixels_per_latent == 2
    assert description.image_size(24, 10) == (24, 10)
    assert description.image_size(None, 10) == (16, 10)
    with pytest.raises(ValueError, match=r"height 16 and width 15 does not fit .* multiples of 2, for example 16"):
        description.image_size(16, 15)
