"""The embedded model reaches the figures of its card, and null-text inversion of its images works as in the paper."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.pools import invert
from torch import Tensor

from nti_batch.benchmarks.job_loop import load_images
from nti_batch.demo.evaluate import Inverted, attention_in_noise, invert_scenes, localisation, replay_psnr
from nti_batch.demo.scenes import object_masks, unseen_scenes
from nti_batch.demo.train import rescale_embeddings
from nti_batch.diffusion.ddim import ddim_sample
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.jobs.flags import SAMPLES
from nti_batch.models.source import EMBEDDED_MODEL, ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.scores.metrics import psnr


@pytest.fixture(scope="module")
def networks() -> StableDiffusion:
    return StableDiffusion.load(ModelSource("demo"))


@pytest.fixture(scope="module")
def inverted(networks: StableDiffusion) -> Inverted:
    """Some of the scenes that the figures of the card are measured on."""
    return invert_scenes(networks, unseen_scenes(12))


def test_the_model_is_small_and_has_only_safetensors_weights():
    weights = [p for p in EMBEDDED_MODEL.rglob("*") if p.suffix in (".safetensors", ".bin", ".pt", ".ckpt")]
    assert {p.suffix for p in weights} == {".safetensors"}
    assert sum(p.stat().st_size for p in EMBEDDED_MODEL.rglob("*")) <= 16e6


def test_the_vae_round_trip_keeps_the_image(inverted: Inverted):
    assert psnr(inverted.round_trip, inverted.images).mean() >= 31


def test_ddim_sampling_reconstructs_the_image_only_without_guidance(networks: StableDiffusion, inverted: Inverted):
    without, guided = (replay_psnr(networks, inverted, w).mean() for w in (1.0, 7.5))
    assert without >= 40
    assert guided <= 22


def test_the_word_of_an_object_attends_to_the_object(inverted: Inverted):
    assert localisation(inverted)[0] >= 0.8


def test_the_words_of_an_object_attend_to_its_place_in_pure_noise(networks: StableDiffusion):
    own, other = attention_in_noise(networks, [s for s in unseen_scenes(24) if len(s.objects) == 2])
    assert own >= 0.6 and other <= 0.05


def test_localisation_is_high_for_attention_equal_to_the_mask_and_low_for_uniform_attention(inverted: Inverted):
    masks = torch.zeros(len(inverted.scenes), 64 * 64, 77)
    for scene, row in zip(inverted.scenes, masks, strict=True):
        for thing, mask in zip(scene.objects, object_masks(scene), strict=True):
            row[:, scene.caption.split().index(thing.colour) + 2] = mask.flatten()
    exact, blind = replace(inverted, attention=masks), replace(inverted, attention=torch.ones_like(masks))
    assert localisation(exact)[0] > 0.99
    assert localisation(blind)[0] < 0.3


def test_null_text_inversion_reconstructs_images_alone_and_in_a_batch(networks: StableDiffusion):
    scenes = unseen_scenes(3)
    start = invert_scenes(networks, scenes)
    latents = networks.encode_images((start.images * 255).round().byte())
    inputs = list(zip(latents, start.prompts, strict=True))
    empty, schedule = networks.embed_prompts([""])[0], networks.schedule(50)
    reconstructed = []
    for images, batch_size in [(inputs, 3), (inputs[:1], 1)]:
        states, _ = invert(networks.predict, schedule, InversionSettings(), images, batch_size, empty)
        decoded = networks.decode_latents(torch.stack([state.latents for state in states]))
        reconstructed.append(psnr(decoded, start.round_trip[: len(images)]))
    together, alone = reconstructed
    assert together.mean() > replay_psnr(networks, start, 7.5).mean() + 15
    assert alone[0] == pytest.approx(together[0], abs=1.5)


def test_a_small_change_of_the_noise_latents_stays_small_in_replays_of_photographs(networks: StableDiffusion):
    images = load_images({"photographs": str(SAMPLES / "photographs-000000.tar")}, "txt", (64, 64), 8)
    chosen = [image for image in images if image.key in ("flower", "rocket")]
    latents = networks.encode_images(torch.stack([image.pixels for image in chosen]))
    prompts = networks.embed_prompts([image.prompt for image in chosen])
    empty, schedule = networks.embed_prompts([""])[0], networks.schedule(50)
    inputs = list(zip(latents, prompts, strict=True))
    states, _ = invert(networks.predict, schedule, InversionSettings(), inputs, 2, empty)
    start = torch.stack([state.trajectory[-1] for state in states])
    null_embeddings = [
        torch.stack(of_step) for of_step in zip(*(state.null_embeddings for state in states), strict=True)
    ]

    def replay(noise_latents: Tensor) -> Tensor:
        return ddim_sample(networks.predict, schedule, noise_latents, prompts, null_embeddings, 7.5).flatten(1)

    change = 1e-5 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    growth = (replay(start + change) - replay(start)).norm(dim=1) / change.flatten(1).norm(dim=1)
    assert growth.max() < 10


def test_the_model_card_lies_beside_the_weights():
    assert Path(EMBEDDED_MODEL / "README.md").is_file()


def test_rescaled_embeddings_give_the_same_predictions(networks: StableDiffusion):
    latents, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([981, 1])
    before = networks.embed_prompts(["a red ring", ""])
    with torch.no_grad():
        expected = networks.predict(latents, timesteps, before)
        rescale_embeddings(networks.text.encoder, networks.unet, 0.5)
        after = networks.embed_prompts(["a red ring", ""])
        predicted = networks.predict(latents, timesteps, after)
        rescale_embeddings(networks.text.encoder, networks.unet, 2.0)
    torch.testing.assert_close(after, before / 2)
    torch.testing.assert_close(predicted, expected, atol=1e-4, rtol=1e-4)
