"""Stable Diffusion XL against diffusers' own pipeline, and the pooled row on its way through the method."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from helpers.pools import invert
from helpers.prompts import noise
from helpers.tiny import write_xl_model
from torch import Tensor

from nti_batch.diffusion.ddim import ddim_sample
from nti_batch.diffusion.pooled_embedding import join_pooled, split_pooled
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.settings import InversionSettings, Solver
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription
from nti_batch.output.serialization import pack_tensors, unpack_tensors

PROMPTS = ["a small red ring", "", "a blue square on the left " * 20]


def load(folder: Path, precision: Precision = "float32") -> StableDiffusion:
    return StableDiffusion.load(ModelSource(str(folder)), precision)


@pytest.fixture(scope="module")
def networks(tiny_xl_model: Path) -> StableDiffusion:
    return load(tiny_xl_model)


@pytest.fixture(scope="module")
def encoding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that embeds the empty prompt as any other."""
    return write_xl_model(tmp_path_factory.mktemp("models") / "encoding", zeros_for_empty_prompt=False)


def pipeline(folder: Path) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- embeddings ---


@pytest.mark.parametrize("zeros", [True, False])
def test_embeddings_are_those_of_diffusers(tiny_xl_model: Path, encoding_model: Path, zeros: bool):
    folder = tiny_xl_model if zeros else encoding_model
    networks = load(folder)
    for prompt in (PROMPTS[0], PROMPTS[2]):
        with torch.no_grad():
            tokens, empty, pooled, pooled_empty = pipeline(folder).encode_prompt(prompt, device="cpu")
        found = networks.embed_prompts([prompt, ""])
        assert found.shape == (2, 78, 20)
        of_tokens, of_whole = split_pooled(found, networks.text.pooled_dim)
        torch.testing.assert_close(of_tokens, torch.cat([tokens, empty]))
        torch.testing.assert_close(of_whole, torch.cat([pooled, pooled_empty]))
    assert bool((found[1] == 0).all()) == zeros


def test_a_pooled_row_is_taken_off_as_it_was_put_on():
    tokens, pooled = torch.randn(2, 3, 77, 20), torch.randn(2, 3, 6)
    joined = join_pooled(tokens, pooled)
    assert joined.shape == (2, 3, 78, 20)
    assert not joined[..., -1, 6:].any()
    for found, expected in zip(split_pooled(joined, 6), (tokens, pooled), strict=True):
        assert torch.equal(found, expected)


def test_words_have_the_same_places_in_both_tokenizers(networks: StableDiffusion):
    first, second = (
        tokenizer(PROMPTS[0], padding="max_length").input_ids
        for tokenizer in (networks.text.tokenizer, networks.text.tokenizer_2)
    )
    end = networks.tokenize(PROMPTS[0]).end
    assert first[: end + 1] == second[: end + 1]
    assert first[end + 1 :] != second[end + 1 :]


# --- the network ---


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_the_unet_is_asked_as_diffusers_ask_it(networks: StableDiffusion, size: tuple[int, int]):
    latents, timesteps = noise(size, 2), torch.tensor([981, 401])
    embeddings = networks.embed_prompts(["a small red ring", "a blue square"])
    pixels = [2.0 * size[0], 2.0 * size[1]]
    condition = {"text_embeds": embeddings[:, -1, :6], "time_ids": torch.tensor([[*pixels, 0.0, 0.0, *pixels]] * 2)}
    with torch.no_grad():
        expected = networks.unet(latents, timesteps, embeddings[:, :-1], added_cond_kwargs=condition).sample
        found = networks.predict(latents, timesteps, embeddings)
        other = networks.unet(
            latents, timesteps, embeddings[:, :-1], added_cond_kwargs=condition | {"time_ids": torch.zeros(2, 6)}
        ).sample
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(other, expected), "the size should matter"


def test_sampling_is_that_of_diffusers(tiny_xl_model: Path, networks: StableDiffusion):
    start, prompt = noise((8, 12)), networks.embed_prompts([PROMPTS[0]])
    expected = pipeline(tiny_xl_model)(
        PROMPTS[0],
        height=16,
        width=24,
        num_inference_steps=20,
        guidance_scale=7.5,
        latents=start.clone(),
        output_type="latent",
    ).images
    null = [networks.embed_prompts([""])] * 20
    found = ddim_sample(networks.predict, networks.schedule(20), start, prompt, null, 7.5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_images_are_scaled_by_the_models_own_factor(networks: StableDiffusion):
    pixels = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        mean = networks.vae.encode(pixels / 127.5 - 1).latent_dist.mean
    torch.testing.assert_close(networks.encode_images(pixels), mean * 0.13025)


def test_in_half_precision_the_vae_and_the_text_encoders_stay_in_float32(tiny_xl_model: Path):
    networks = load(tiny_xl_model, "bfloat16")
    assert {p.dtype for p in networks.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for m in (networks.vae, networks.text) for p in m.parameters()} == {torch.float32}
    assert networks.predict(noise(), torch.tensor([501]), networks.embed_prompts(["a"])).dtype == torch.float32


# --- the method ---


def inverted(
    networks: StableDiffusion,
    optimize_pooled: bool,
    solver: Solver,
    storage: Storage,
    null_init: Literal["empty", "prompt"] = "prompt",
) -> tuple[Tensor, Tensor]:
    """Where null_T started from, and the null embeddings, after updates at every timestep."""
    settings = InversionSettings(
        solver=solver, null_init=null_init, num_inner_steps=2, early_stop_epsilon=0, early_stop_growth=0
    )
    predict = partial(networks.predict, optimize_pooled=optimize_pooled)
    prompt, empty = networks.embed_prompts([PROMPTS[0], ""])
    schedule = networks.schedule(3)
    (state,), _ = invert(predict, schedule, settings, [(noise()[0], prompt)], 1, empty, storage)
    assert state.inner_steps == [2, 2, 2]
    return state.start_embedding, state.null_embeddings


@pytest.mark.parametrize("storage", ["float32", "float16", "compact"])
@pytest.mark.parametrize("solver", ["adam", "polyak"])
def test_the_pooled_row_moves_only_if_it_is_asked_to(networks: StableDiffusion, solver: Solver, storage: Storage):
    for optimize_pooled in (False, True):
        start, found = inverted(networks, optimize_pooled, solver, storage)
        kept = (found == start).all(0)
        assert not kept[:-1].all(1).any(), "every token should move"
        assert kept[-1, :6].all() == (not optimize_pooled)
        assert kept[-1, 6:].all(), "what pads the pooled row is never moved"
        payload = pack_tensors(storage, noise()[0], start, found, None)
        assert torch.equal(unpack_tensors(payload, 3)[1], found)


def test_from_zeros_the_tokens_of_a_null_embedding_stay_alike(networks: StableDiffusion):
    """Equal tokens have equal gradients, and nothing tells them apart: `configs/sdxl.yaml` starts from the prompt."""
    _, found = inverted(networks, False, "adam", "float32", null_init="empty")
    tokens, _ = split_pooled(found, 6)
    assert tokens.any()
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens), atol=2e-3, rtol=0)


# --- what is refused ---


def changed(folder: Path, copy: Path, file: str, **changes: object) -> Path:
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("model_index.json", {"requires_aesthetics_score": True}, "is the refiner of Stable Diffusion XL"),
        (
            "vae/config.json",
            {"latents_mean": [0.1] * 4},
            r"latents_mean is \[.*otherwise it is a model that shifts its latents",
        ),
        (
            "unet/config.json",
            {"addition_embed_type": "image"},
            r"addition_embed_type is 'image', allowed: null or \"text_time\"; nti_batch supports",
        ),
        ("unet/config.json", {"in_channels": 9}, r"takes 9 channels and gives 4 \(an inpainting"),
    ],
)
def test_its_relatives_are_refused_in_words(
    tiny_xl_model: Path, tmp_path: Path, file: str, change: dict[str, object], words: str
):
    with pytest.raises(ValueError, match=words):
        ModelDescription.of(ModelSource(str(changed(tiny_xl_model, tmp_path / "model", file, **change))))


def test_without_its_index_it_is_refused(tiny_xl_model: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_xl_model, tmp_path / "model"))
    (folder / "model_index.json").unlink()
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        ModelDescription.of(ModelSource(str(folder)))
