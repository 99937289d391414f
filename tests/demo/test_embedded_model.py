"""The embedded model keeps what its card promises, and null-text inversion does on it what the paper says."""

from pathlib import Path

import pytest
import torch
from helpers.pools import invert

from nti_batch.demo.evaluate import Inverted, invert_scenes, localisation, replay_psnr
from nti_batch.demo.scenes import object_masks, unseen_scenes
from nti_batch.demo.train import rescale_embeddings
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.source import EMBEDDED_MODEL, ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.scores.metrics import psnr


@pytest.fixture(scope="module")
def networks() -> StableDiffusion:
    return StableDiffusion.load(ModelSource("demo"))


@pytest.fixture(scope="module")
def inverted(networks: StableDiffusion) -> Inverted:
    """A few of the scenes that the card's figures are measured on."""
    return invert_scenes(networks, unseen_scenes(12))


def test_it_is_small_and_holds_no_pickle():
    weights = [p for p in EMBEDDED_MODEL.rglob("*") if p.suffix in (".safetensors", ".bin", ".pt", ".ckpt")]
    assert {p.suffix for p in weights} == {".safetensors"}
    assert sum(p.stat().st_size for p in weights) <= 12e6


def test_the_vae_keeps_the_picture(inverted: Inverted):
    assert psnr(inverted.round_trip, inverted.pictures).mean() >= 30


def test_inversion_is_undone_without_guidance_and_lost_with_it(networks: StableDiffusion, inverted: Inverted):
    without, guided = (replay_psnr(networks, inverted, w).mean() for w in (1.0, 7.5))
    assert without >= 44
    assert guided <= 20


def test_an_object_word_is_looked_for_where_the_object_is(inverted: Inverted):
    assert localisation(inverted)[0] >= 0.5


def test_localisation_is_whole_for_attention_that_is_the_mask_and_poor_for_attention_everywhere(inverted: Inverted):
    masks = torch.zeros(len(inverted.scenes), 64 * 64, 77)
    for scene, row in zip(inverted.scenes, masks, strict=True):
        for thing, mask in zip(scene.objects, object_masks(scene), strict=True):
            row[:, scene.caption.split().index(thing.colour) + 2] = mask.flatten()
    exact = Inverted(inverted.scenes, *[torch.empty(0)] * 4, attention=masks)
    blind = Inverted(inverted.scenes, *[torch.empty(0)] * 4, attention=torch.ones_like(masks))
    assert localisation(exact)[0] > 0.99
    assert localisation(blind)[0] < 0.3


def test_null_text_rebuilds_what_plain_guidance_loses_alone_as_in_company(networks: StableDiffusion):
    scenes = unseen_scenes(3)
    start = invert_scenes(networks, scenes)
    latents = networks.encode_pictures((start.pictures * 255).round().byte())
    inputs = list(zip(latents, start.prompts, strict=True))
    empty, schedule = networks.embed_prompts([""])[0], networks.schedule(50)
    rebuilt = []
    for images, batch_size in [(inputs, 3), (inputs[:1], 1)]:
        states, _ = invert(networks.predict, schedule, InversionSettings(), images, batch_size, empty)
        pictures = networks.decode_latents(torch.stack([state.current_latents for state in states]))
        rebuilt.append(psnr(pictures, start.round_trip[: len(images)]))
    together, alone = rebuilt
    assert together.mean() > replay_psnr(networks, start, 7.5).mean() + 15
    assert alone[0] == pytest.approx(together[0], abs=1.5)


def test_its_files_lie_where_the_package_data_are():
    assert Path(EMBEDDED_MODEL / "README.md").is_file()


def test_rescaled_embeddings_are_the_same_model(networks: StableDiffusion):
    latents, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([981, 1])
    before = networks.embed_prompts(["a red ring", ""])
    with torch.no_grad():
        expected = networks.predict(latents, timesteps, before)
        rescale_embeddings(networks.text.encoder, networks.unet, 0.5)
        after = networks.embed_prompts(["a red ring", ""])
        found = networks.predict(latents, timesteps, after)
        rescale_embeddings(networks.text.encoder, networks.unet, 2.0)
    torch.testing.assert_close(after, before / 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
