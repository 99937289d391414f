"""Which models the job accepts, by the fields of their JSON files, and what it reads there."""

import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from helpers.jobs import arguments
from helpers.ldm import write_checkpoint
from helpers.models import changed_model, drop_keys, edit_json
from helpers.public_models import OLD_FILES, PUBLIC, SCHEDULER_FILE, TOKENIZER_FILE, UNET_FILE, VAE_FILE
from helpers.tiny import captioned, write_shard
from safetensors.torch import load_file, save_file

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.models.accepted import UNET, VAE
from nti_batch.models.rules import Rules
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription


def describe(folder: Path) -> ModelDescription:
    return ModelDescription.of(ModelSource(str(folder)))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_models_are_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files, size, embedding = PUBLIC[name]
    for file, content in (OLD_FILES | files).items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(content))
    monkeypatch.setattr(ModelSource, "_download", lambda self, file: tmp_path / file)
    found = ModelDescription.of(ModelSource("user/model"))
    assert (found.size, found.embedding_shape, found.pixels_per_latent) == (size, embedding, 8)


# --- other kinds of models ---

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 2.5}
EDM = {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_data": 1.0}


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (SCHEDULER_FILE, FLOW, "flow matching, EDM and consistency models are sampled in other ways"),
        (SCHEDULER_FILE, EDM, "_class_name is 'EDMEulerScheduler', allowed: a scheduler that adds noise as DDPM does"),
        (SCHEDULER_FILE, {"_class_name": "LCMScheduler"}, "_class_name is 'LCMScheduler'"),
        (SCHEDULER_FILE, {"_class_name": "CogVideoXDDIMScheduler"}, "_class_name is 'CogVideoXDDIMScheduler'"),
        (SCHEDULER_FILE, {"use_flow_sigmas": True}, "use_flow_sigmas is True, allowed: false or null"),
        (SCHEDULER_FILE, {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        (SCHEDULER_FILE, {"predict_epsilon": False}, "predict_epsilon is False"),
        (SCHEDULER_FILE, {"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        (SCHEDULER_FILE, {"timestep_spacing": "other"}, "timestep_spacing is 'other'"),
        (SCHEDULER_FILE, {"thresholding": True}, "thresholding is True"),
        (SCHEDULER_FILE, {"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        (SCHEDULER_FILE, {"beta_end": 1.2}, "beta_end is 1.2"),
        (SCHEDULER_FILE, {"trained_betas": [0.1, 0.2]}, "trained_betas .* allowed: 1000 values"),
        (UNET_FILE, {"_class_name": "UNet3DConditionModel"}, "_class_name is 'UNet3DConditionModel'"),
        (UNET_FILE, {"time_cond_proj_dim": 256}, "otherwise it is a latent consistency model"),
        (UNET_FILE, {"class_embed_type": "projection"}, "conditioned on a class or an image, as unCLIP is"),
        (UNET_FILE, {"num_class_embeds": 10}, "num_class_embeds is 10, allowed: null"),
        (UNET_FILE, {"encoder_hid_dim": 4096}, "made for another text or image encoder"),
        (UNET_FILE, {"encoder_hid_dim_type": "text_proj"}, "made for another text or image encoder"),
        (UNET_FILE, {"attention_type": "gated"}, "attention_type is 'gated', allowed: \"default\""),
        (UNET_FILE, {"dual_cross_attention": True}, "dual_cross_attention is True"),
        (UNET_FILE, {"only_cross_attention": [True, False]}, "only_cross_attention is"),
        (UNET_FILE, {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type is"),
        (UNET_FILE, {"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]}, "down_block_types is"),
        (UNET_FILE, {"cross_attention_norm": "group_norm"}, "cross_attention_norm is"),
        (UNET_FILE, {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is"),
        (UNET_FILE, {"time_embedding_type": "fourier"}, "time_embedding_type is"),
        (UNET_FILE, {"quantization_config": {"quant_method": "x"}}, "otherwise it is quantized"),
        (UNET_FILE, {"cross_attention_dim": 16}, "cross_attention_dim is 16, allowed: 8, the width of the text"),
        (UNET_FILE, {"in_channels": 8, "out_channels": 8}, "latent_channels is 4, allowed: 8, which the UNet takes"),
        (VAE_FILE, {"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny'"),
        (VAE_FILE, {"shift_factor": 0.0609}, "shift_factor is 0.0609"),
        (VAE_FILE, {"latents_std": [1.0] * 4}, "latents_std is"),
        ("text_encoder/config.json", {"model_type": "t5"}, "model_type is 't5'"),
        ("text_encoder/config.json", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
    ],
)
def test_what_the_job_does_not_implement_is_refused_before_weights_are_loaded(
    tiny_model: Path, tmp_path: Path, file: str, changes: dict[str, Any], words: str
):
    folder = changed_model(tiny_model, tmp_path / "model", file, **changes)
    with pytest.raises(ValueError, match=words):
        describe(folder)


@pytest.mark.parametrize("key", ["beta_start", "beta_end", "beta_schedule"])
def test_a_schedule_without_its_betas_is_refused(tiny_model: Path, tmp_path: Path, key: str):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    drop_keys(folder / SCHEDULER_FILE, key)
    with pytest.raises(ValueError, match=f"{key} is missing, so the noise levels of the training are unknown"):
        describe(folder)


def test_an_xl_model_whose_size_conditioning_is_another_one_is_refused(tiny_xl_model: Path, tmp_path: Path):
    folder = changed_model(
        tiny_xl_model, tmp_path / "model", UNET_FILE, projection_class_embeddings_input_dim=6 + 5 * 4
    )
    with pytest.raises(ValueError, match="projection_class_embeddings_input_dim is 26, allowed: 30"):
        describe(folder)


def test_the_pooled_embedding_must_be_that_of_the_end_token(tiny_xl_model: Path, tmp_path: Path):
    folder = changed_model(tiny_xl_model, tmp_path / "model", "text_encoder_2/config.json", eos_token_id=7)
    with pytest.raises(ValueError, match="eos_token_id is 7, allowed: 611"):
        StableDiffusion.load(ModelSource(str(folder)))


def test_settings_of_other_samplers_change_nothing(tiny_model: Path, tmp_path: Path):
    changes = {"use_karras_sigmas": True, "solver_order": 3, "final_sigmas_type": "zero", "clip_sample": True}
    folder = changed_model(
        tiny_model, tmp_path / "model", SCHEDULER_FILE, _class_name="DPMSolverMultistepScheduler", **changes
    )
    found, expected = (StableDiffusion.load(ModelSource(str(path))).schedule(50) for path in (folder, tiny_model))
    assert torch.equal(found.alphas_cumprod, expected.alphas_cumprod)
    assert torch.equal(found.network_timesteps, expected.network_timesteps)


@pytest.mark.parametrize(
    ("make", "rules"), [(UNet2DConditionModel.__init__, UNET), (AutoencoderKL.__init__, VAE)], ids=["UNet", "VAE"]
)
def test_every_field_of_the_installed_diffusers_has_a_rule(make: Callable[..., None], rules: Rules):
    assert set(inspect.signature(make).parameters) - {"self"} <= set(rules)


def test_a_field_that_only_a_newer_diffusers_has_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    folder = changed_model(tiny_model, tmp_path / "model", UNET_FILE, norm_num_groups=2)
    monkeypatch.setattr(
        "nti_batch.models.weights._RULES", {"unet": {key: UNET[key] for key in UNET if key != "norm_num_groups"}}
    )
    with pytest.raises(ValueError, match="norm_num_groups is 2, allowed: 32, since the job does not know this field"):
        StableDiffusion.load(ModelSource(str(folder)))


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("edm_mean", r"was trained as EDM models are \('edm_mean'\)"),
        ("v_pred", "says that it predicts v"),
        ("ztsnr", "says that its schedule has zero terminal SNR"),
    ],
)
def test_the_markers_of_a_single_file_must_agree_with_the_configuration(
    tiny_model: Path, tmp_path: Path, marker: str, words: str
):
    file = write_checkpoint(tiny_model, tmp_path / "model.safetensors")
    save_file(load_file(file) | {marker: torch.zeros(0)}, file)
    with pytest.raises(ValueError, match=words):
        ModelDescription.of(ModelSource(str(file), config=str(tiny_model)))


# --- the size of the images ---


def test_a_size_may_be_a_pair_of_height_and_width(tiny_model: Path, tmp_path: Path):
    assert describe(changed_model(tiny_model, tmp_path / "model", UNET_FILE, sample_size=[8, 12])).size == (16, 24)


def test_a_model_without_a_size_asks_for_one(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = changed_model(tiny_model, tmp_path / "model", UNET_FILE, sample_size=None)
    job = [*arguments(folder, write_shard(tmp_path / "a.tar", captioned(1)), tmp_path / "out"), "--dry_run"]
    assert main(job) == 2
    assert "give --data.height and --data.width, multiples of 2" in capsys.readouterr().err
    assert main([*job, "--data.height=16"]) == 2
    assert main([*job, "--data.height=16", "--data.width=24"]) == 0


# --- the number of tokens ---


@pytest.mark.parametrize("length", [None, 1e30, 10**30, 512])
@pytest.mark.parametrize("family", ["tiny_model", "tiny_xl_model"])
def test_prompts_have_at_most_as_many_tokens_as_the_text_encoder_has_positions(
    family: str, length: float | None, tmp_path: Path, request: pytest.FixtureRequest
):
    original: Path = request.getfixturevalue(family)
    folder = changed_model(original, tmp_path / "model", TOKENIZER_FILE, model_max_length=length)
    if length is None:
        drop_keys(folder / TOKENIZER_FILE, "model_max_length")
    expected = StableDiffusion.load(ModelSource(str(original)))
    found = StableDiffusion.load(ModelSource(str(folder)))
    assert describe(folder).embedding_shape == describe(original).embedding_shape
    prompts = ["a small red ring", "red " * 100]
    assert torch.equal(found.embed_prompts(prompts), expected.embed_prompts(prompts))
    assert [found.truncates(prompt) for prompt in prompts] == [False, True]
    assert found.tokenize(prompts[1]) == expected.tokenize(prompts[1])


def test_a_job_with_a_tokenizer_that_names_no_length_stores_whole_embeddings(tiny_model: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    drop_keys(folder / TOKENIZER_FILE, "model_max_length")
    job = arguments(folder, write_shard(tmp_path / "a.tar", captioned(1)), tmp_path / "out")
    assert main([*job, "--dry_run"]) == 0
    assert main(job) == 0
    assert [stored.null_embeddings.shape for stored in read_inversions(tmp_path / "out")] == [(3, 77, 8)]


@pytest.mark.parametrize("length", ["77", -1, True])
def test_a_length_that_is_none_is_refused(tiny_model: Path, tmp_path: Path, length: object):
    folder = changed_model(tiny_model, tmp_path / "model", TOKENIZER_FILE, model_max_length=length)
    with pytest.raises(ValueError, match=re.escape(f"model_max_length is {length!r}, allowed: a ")):
        describe(folder)


def test_both_tokenizers_of_an_xl_model_have_the_shorter_length(tiny_xl_model: Path, tmp_path: Path):
    folder = changed_model(tiny_xl_model, tmp_path / "model", "tokenizer_2/tokenizer_config.json", model_max_length=20)
    assert StableDiffusion.load(ModelSource(str(folder))).embed_prompts(["a ring"]).shape == (1, 21, 20)
    edit_json(folder / "tokenizer_2/tokenizer_config.json", model_max_length=77)
