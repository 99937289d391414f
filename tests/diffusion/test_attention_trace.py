"""A trace shows the attention of a sampling run, and changes nothing of it."""

from pathlib import Path

import pytest
import torch
from helpers.edited_samples import SOURCE, STEPS, control_of, guidance, null_embeddings
from helpers.prompts import noise

from nti_batch.diffusion.attention_trace import AttentionTrace
from nti_batch.diffusion.edit_sample import edit_sample
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion

EDIT = "a blue circle on the left"
PLAIN = EditSettings(cross_replace_steps=0.0, self_replace_steps=0.0)
BLENDED = EditSettings(blend_words=("circle", "circle"), equalizer={"blue": 3.0}, blend_threshold=0.9)


@pytest.fixture(scope="module")
def networks(tiny_model: Path) -> StableDiffusion:
    return StableDiffusion.load(ModelSource(str(tiny_model)))


def sample(networks: StableDiffusion, settings: EditSettings, trace: AttentionTrace | None) -> torch.Tensor:
    edits = [(SOURCE, [(EDIT, settings)])]
    inputs = noise((8, 8), 1), networks.embed_prompts([SOURCE, EDIT]), null_embeddings()
    return edit_sample(
        networks.predict,
        networks.controlled,
        networks.schedule(STEPS),
        *inputs,
        guidance(edits),
        control_of(networks, edits),
        trace=trace,
    )


@pytest.mark.parametrize("settings", [PLAIN, BLENDED], ids=["plain", "blended"])
def test_a_trace_changes_no_bit_of_a_sample(networks: StableDiffusion, settings: EditSettings):
    assert torch.equal(sample(networks, settings, AttentionTrace()), sample(networks, settings, None))


@pytest.mark.parametrize("settings", [PLAIN, BLENDED], ids=["plain", "blended"])
def test_the_attention_of_a_pixel_is_one_in_each_layer_and_step(networks: StableDiffusion, settings: EditSettings):
    trace = AttentionTrace()
    sample(networks, settings, trace)
    assert trace.maps is not None
    assert trace.maps.shape == (2, 8, 8, 77)
    # one cross-attention layer on the way down, two on the way up
    of_source = trace.maps[0].sum(-1)
    assert torch.allclose(of_source, torch.full((8, 8), 3.0 * STEPS), rtol=1e-4)


def test_the_mask_is_the_one_of_the_last_step(networks: StableDiffusion):
    trace = AttentionTrace()
    latents = sample(networks, BLENDED, trace)
    assert trace.mask is not None and trace.mask.shape == (2, 8, 8) and 0 < trace.mask[1].sum() < 64
    changed = (latents[1] != latents[0]).any(0)
    assert torch.equal(changed, trace.mask[1])
    sample(networks, PLAIN, plain := AttentionTrace())
    assert plain.mask is None
