"""DDIM against its inverse, its closed forms and diffusers."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from helpers.fakes import rowwise, stable_diffusion_schedule
from torch import Tensor

from nti_batch.diffusion.ddim import ddim_invert, ddim_sample, ddim_step
from nti_batch.diffusion.guidance import classifier_free_guidance
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.scores.metrics import psnr

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def test_a_step_up_undoes_a_step_down_whatever_the_levels():
    schedule = stable_diffusion_schedule(50)
    latents, noise = torch.randn(2, 4, 4, 8, 8)
    a, b = torch.tensor([50, 17, 3, 1]), torch.tensor([49, 2, 30, 0])
    there = ddim_step(schedule, latents, noise, a, b)
    back = ddim_step(schedule, there, noise, b, a)
    torch.testing.assert_close(back, latents, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(50, 49), (50, 0), (49, 50), (17, 3), (3, 17), (1, 0), (0, 1)])
@pytest.mark.parametrize("last", [None, 2.0**-64])
def test_the_velocity_of_the_noisier_level_leads_where_its_noise_does(source: int, target: int, last: float | None):
    epsilon = stable_diffusion_schedule(50)
    levels = epsilon.alphas_cumprod.clone()
    levels[-1] = last or levels[-1]  # at zero terminal SNR the noise alone would not lead down
    schedule = DDIMSchedule(levels, epsilon.network_timesteps, "v_prediction")
    image, noise = torch.randn(2, 1, 4, 8, 8)
    cos, sin = levels.double().sqrt(), (1 - levels.double()).sqrt()
    latents = [cos[t] * image + sin[t] * noise for t in (source, target)]
    noisier = max(source, target)
    # v that stands for this noise at the noisier level, where the network takes z_a for its input
    velocity = (
        cos[source] * noise - sin[source] * image
        if source > target
        else ((noise - sin[noisier] * latents[0]) / cos[noisier])
    )
    a, b = torch.tensor([source]), torch.tensor([target])
    found = ddim_step(schedule, latents[0].float(), velocity.float(), a, b)
    torch.testing.assert_close(found, latents[1].float(), atol=2e-5, rtol=1e-5)


def test_a_step_between_equal_levels_is_the_identity():
    schedule = stable_diffusion_schedule(20)
    latents, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 9, 20])
    torch.testing.assert_close(ddim_step(schedule, latents, noise, t, t), latents)


def test_the_true_noise_leads_to_the_image_from_every_level():
    schedule = stable_diffusion_schedule(50)
    image, noise = torch.randn(2, 51, 4, 2, 2)
    t = torch.arange(51)
    noisy = schedule.alpha(t).sqrt() * image + (1 - schedule.alpha(t)).sqrt() * noise
    reached = ddim_step(schedule, noisy, noise, t, torch.zeros_like(t))
    clean = schedule.alphas_cumprod[0].sqrt() * image + (1 - schedule.alphas_cumprod[0]).sqrt() * noise
    torch.testing.assert_close(reached, clean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 20, 50])
def test_sampling_agrees_with_diffusers(num_steps: int):
    scheduler = DDIMScheduler(**STABLE_DIFFUSION)
    scheduler.set_timesteps(num_steps)
    latents, prompt = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 4)
    expected = latents
    for timestep in scheduler.timesteps:
        noise = rowwise(expected, timestep.view(1), prompt)
        expected = scheduler.step(noise, timestep, expected).prev_sample
    schedule = stable_diffusion_schedule(num_steps)
    reached = ddim_sample(rowwise, schedule, latents, prompt, [prompt] * num_steps, guidance_scale=1)
    torch.testing.assert_close(reached, expected, atol=1e-4, rtol=1e-4)


def test_inversion_agrees_with_diffusers():
    scheduler = DDIMInverseScheduler(**STABLE_DIFFUSION)
    scheduler.set_timesteps(50)
    image, prompt = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 4)
    expected = image
    for timestep in scheduler.timesteps:
        noise = rowwise(expected, timestep.view(1), prompt)
        expected = scheduler.step(noise, timestep, expected).prev_sample
    trajectory = ddim_invert(rowwise, stable_diffusion_schedule(50), image, prompt)
    assert trajectory.shape == (51, 1, 4, 2, 2)
    torch.testing.assert_close(trajectory[-1], expected, atol=1e-4, rtol=1e-4)


def test_sampling_undoes_inversion_for_a_noise_that_ignores_the_latents():
    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        return (timesteps.view(-1, 1, 1, 1) / 1000).sin() * torch.ones_like(latents)

    schedule, image, prompt = stable_diffusion_schedule(50), torch.randn(2, 4, 2, 2), torch.zeros(2, 1, 1)
    noise_latents = ddim_invert(predict, schedule, image, prompt)[-1]
    reached = ddim_sample(predict, schedule, noise_latents, prompt, [prompt] * 50, guidance_scale=7.5)
    torch.testing.assert_close(reached, image, atol=1e-4, rtol=1e-4)


def test_guidance_extrapolates_from_the_unconditional_noise():
    uncond, cond = torch.tensor([1.0]), torch.tensor([3.0])
    assert [classifier_free_guidance(uncond, cond, w).item() for w in (0, 1, 7.5)] == [1, 3, 16]


def test_psnr_of_a_known_error():
    reference = torch.zeros(2, 3, 4, 4)
    image = reference + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(image, reference), torch.tensor([20.0, 40.0]))
