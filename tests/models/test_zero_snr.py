"""Schedules of zero terminal SNR, against a closed form and diffusers' DDIM."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from helpers.tiny import ZERO_SNR, write_model
from torch import Tensor, nn

from nti_batch.diffusion.ddim import ddim_invert, ddim_sample
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription

ROUNDING = 20 * 2.0**-21
"""Twenty roundings of a value below 8 in float32. A step down is a rotation, so it amplifies no earlier rounding."""


def load(folder: Path) -> StableDiffusion:
    return StableDiffusion.load(ModelSource(str(folder)))


@pytest.fixture(scope="module")
def to_the_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose sampling ends at a level of 1."""
    return write_model(tmp_path_factory.mktemp("models") / "to-the-end", **ZERO_SNR, set_alpha_to_one=True)


def change_scheduler(folder: Path, copy: Path, **changes: object) -> Path:
    shutil.copytree(folder, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


class OneImage(nn.Module):
    """The perfect v-prediction where all images are one: v = (sqrt(abar) z - x_0) / sqrt(1 - abar), in float64."""

    dtype = torch.float32

    def __init__(self, alphas_cumprod: Tensor, image: Tensor) -> None:
        """Take the image."""
        super().__init__()
        self.alphas_cumprod, self.image = alphas_cumprod.double(), image

    def forward(self, latents: Tensor, timesteps: Tensor, *_: Tensor, **__: object) -> tuple[Tensor]:
        """Predict v, as diffusers' UNet does with `return_dict=False`."""
        abar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return (((abar.sqrt() * latents.double() - self.image) / (1 - abar).sqrt()).float(),)


@pytest.mark.parametrize("num_steps", [1, 10, 50])
@pytest.mark.parametrize("folder", ["tiny_zero_snr_model", "to_the_end"])
def test_where_all_images_are_one_every_noise_ends_there(folder: str, num_steps: int, request: pytest.FixtureRequest):
    networks = load(request.getfixturevalue(folder))
    schedule, final = networks.schedule(num_steps), networks.scheduler.final_alpha_cumprod
    torch.manual_seed(0)
    image, noise, nothing = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.zeros(1, 77, 8)
    networks.unet = OneImage(networks.scheduler.alphas_cumprod, image)
    found = ddim_sample(networks.predict, schedule, noise, nothing, [nothing] * num_steps, 7.5)
    assert networks.scheduler.alphas_cumprod[-1] == 0
    # z_T is all noise, and the step down adds the image to it
    expected = final.sqrt() * image + (1 - final).sqrt() * noise
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=0)
    # the way up from the image stays finite
    top = ddim_invert(networks.predict, schedule, found, nothing)[-1]
    assert top.isfinite().all()


@pytest.mark.parametrize("folder", ["tiny_zero_snr_model", "to_the_end"])
def test_guided_sampling_is_that_of_diffusers(folder: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(folder)
    networks, scheduler = load(path), DDIMScheduler.from_pretrained(path, subfolder="scheduler")
    scheduler.set_timesteps(10)
    prompt, empty = networks.embed_prompts(["a small red ring", ""]).split(1)
    torch.manual_seed(0)
    start = torch.randn(1, 4, 8, 8)
    expected = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            uncond, cond = (networks.unet(expected, t, embedding).sample for embedding in (empty, prompt))
            expected = scheduler.step(uncond + 7.5 * (cond - uncond), t, expected).prev_sample
    found = ddim_sample(networks.predict, networks.schedule(10), start, prompt, [empty] * 10, 7.5)
    # ten steps through the UNet move a start that differs in its last bit by 3e-6
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_steps", [1, 3, 10, 16, 50, 300])
@pytest.mark.parametrize("folder", ["tiny_zero_snr_model", "to_the_end"])
def test_trailing_timesteps_and_the_last_level_are_those_of_diffusers(
    folder: str, num_steps: int, request: pytest.FixtureRequest
):
    path = request.getfixturevalue(folder)
    schedule, scheduler = load(path).schedule(num_steps), DDIMScheduler.from_pretrained(path, subfolder="scheduler")
    scheduler.set_timesteps(num_steps)
    assert schedule.network_timesteps[1:].flip(0).tolist() == scheduler.timesteps.tolist()
    torch.testing.assert_close(
        schedule.alphas_cumprod[1:].flip(0), scheduler.alphas_cumprod[scheduler.timesteps], atol=2**-24, rtol=0
    )
    assert schedule.alphas_cumprod[0] == scheduler.final_alpha_cumprod


@pytest.mark.parametrize("spacing", ["linspace", "leading", None])
def test_any_other_spacing_is_leading(tiny_model: Path, tmp_path: Path, spacing: str | None):
    changes = {} if spacing is None else {"timestep_spacing": spacing}
    found = load(change_scheduler(tiny_model, tmp_path / "model", steps_offset=0, **changes)).schedule(50)
    expected = load(tiny_model).schedule(50)
    assert torch.equal(found.network_timesteps, expected.network_timesteps)
    assert torch.equal(found.alphas_cumprod, expected.alphas_cumprod)


def test_with_noise_prediction_it_is_refused_in_words(tiny_zero_snr_model: Path, tmp_path: Path):
    folder = change_scheduler(tiny_zero_snr_model, tmp_path / "model", prediction_type="epsilon")
    with pytest.raises(ValueError, match=r"schedule of zero terminal SNR \(rescale_betas_zero_snr\).*'v_prediction'"):
        ModelDescription.of(ModelSource(str(folder)))
