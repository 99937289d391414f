"""Attention control against a second implementation in loops, and properties that hold for any network."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.edited_samples import (
    ROUNDING,
    SCALE,
    SOURCE,
    STEPS,
    SWAP,
    control_of,
    guidance,
    null_embeddings,
    plain,
    sample,
)
from helpers.inversions import SETTINGS
from helpers.prompts import noise
from torch import Tensor

from nti_batch.diffusion.edit_sample import edit_sample
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.editing.reconstruct import reconstruct
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.manifest_rows import Metadata
from nti_batch.output.serialization import StoredInversion


def test_an_edit_to_the_same_prompt_is_the_source(networks: StableDiffusion):
    always = EditSettings(cross_replace_steps=1, self_replace_steps=1)
    for settings in (EditSettings(), EditSettings(kind="replace"), always, EditSettings(blend_words=("red", "red"))):
        source, edit = sample(networks, [(SOURCE, [(SOURCE, settings)])])
        torch.testing.assert_close(edit, source, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (6, 4)])
def test_the_source_comes_out_as_without_edits_and_an_edit_differs(networks: StableDiffusion, size: tuple[int, int]):
    blended = EditSettings(blend_words=("circle", "square"), blend_threshold=0.9)
    edits = [("a blue square on the left", SWAP), ("a large red square", blended)]
    rows = sample(networks, [(SOURCE, edits)], size)
    torch.testing.assert_close(rows[:1], plain(networks, SOURCE, size), atol=1e-4, rtol=1e-4)
    for row, (prompt, _) in zip(rows[1:], edits, strict=True):
        assert (row - rows[0]).abs().max() > 1e-2
        assert (row - plain(networks, prompt, size)).abs().max() > 1e-2


def test_the_source_is_the_replay_of_the_file(networks: StableDiffusion):
    nulls = torch.cat(null_embeddings())
    settings = replace(SETTINGS, inversion=InversionSettings(guidance_scale=SCALE))
    metadata: Metadata = {"settings": settings.to_json()}
    expected = reconstruct(
        networks, [StoredInversion("shard", "key", SOURCE, noise()[0], nulls, metadata)], guided=True
    )
    source, _ = sample(networks, [(SOURCE, [("a blue circle on the left", SWAP)])])
    torch.testing.assert_close(networks.decode_latents(source[None]), expected, atol=1e-4, rtol=1e-4)


def test_without_shares_an_edit_is_the_plain_exchange_of_the_prompt(networks: StableDiffusion):
    nothing = EditSettings(cross_replace_steps=0, self_replace_steps=0)
    edit = sample(networks, [(SOURCE, [("a blue square on the left", nothing)])])[1:]
    torch.testing.assert_close(edit, plain(networks, "a blue square on the left"), atol=1e-4, rtol=1e-4)


def test_with_direct_inversion_sources_go_along_their_pivots_and_edits_their_own_way(networks: StableDiffusion):
    nothing, start = EditSettings(cross_replace_steps=0, self_replace_steps=0), noise(images=2)
    prompts = [SOURCE, "a blue square on the left", "a small star", "a small heart", "a large star"]
    edits = [(SOURCE, [(prompts[1], nothing)]), (prompts[2], [(p, SWAP) for p in prompts[3:]])]
    control = control_of(networks, edits)
    pivot = torch.randn(STEPS, 2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    seen: list[Tensor] = []

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        seen.append(latents[control.rows.sources])
        return networks.predict(latents, timesteps, embeddings)

    inputs = (start, networks.embed_prompts(prompts), null_embeddings(2), guidance(edits), control)
    rows = edit_sample(predict, networks.controlled, networks.schedule(STEPS), *inputs, list(pivot))
    assert torch.equal(torch.stack(seen[::2]), torch.cat([start[None], pivot[:-1]]))
    assert torch.equal(rows[[0, 2]], pivot[-1])
    torch.testing.assert_close(rows[1:2], plain(networks, prompts[1]), atol=1e-4, rtol=1e-4)
    assert (rows[3:] - torch.cat([plain(networks, p, image=1) for p in prompts[3:]])).abs().amax((1, 2, 3)).min() > 1e-2


def test_images_of_one_batch_are_edited_as_if_alone(networks: StableDiffusion):
    blended = EditSettings(cross_replace_steps=0.5, blend_words=("star", "heart"), equalizer={"heart": 2.0})
    first = (SOURCE, [("a blue square on the left", SWAP), ("a large red circle", EditSettings())])
    second = ("a small star", [("a small green heart", blended)])
    together = sample(networks, [first, second])
    torch.testing.assert_close(together[:3], sample(networks, [first]), atol=1e-4, rtol=1e-4)
    pair = sample(networks, [second, second])  # noise and null embeddings are those of the place
    torch.testing.assert_close(together[3:], pair[2:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[3:4], plain(networks, second[0], image=1), atol=1e-4, rtol=1e-4)


def test_edits_of_one_image_do_not_know_each_other(networks: StableDiffusion):
    edits = [("a blue square on the left", SWAP), ("a large red circle", EditSettings(blend_words=("red", "large")))]
    together = sample(networks, [(SOURCE, edits)])
    for row, edit in zip(together[1:], edits, strict=True):
        torch.testing.assert_close(row, sample(networks, [(SOURCE, [edit])])[1], atol=1e-4, rtol=1e-4)


def test_local_blend_with_an_empty_mask_is_the_source_and_with_a_full_one_the_edit(networks: StableDiffusion):
    def edit(**blend: Any) -> Tensor:
        settings = EditSettings(kind="replace", cross_replace_steps=0.5, self_replace_steps=0.5, **blend)
        return sample(networks, [(SOURCE, [("a blue square on the left", settings)])])

    words = ("circle", "square")
    unblended = edit()
    empty = edit(blend_words=words, blend_threshold=1, blend_start=0)
    full = edit(blend_words=words, blend_threshold=0, blend_start=0)
    torch.testing.assert_close(empty[1], empty[0], atol=0, rtol=0)
    torch.testing.assert_close(full, unblended, atol=1e-4, rtol=1e-4)


def test_a_weight_of_one_changes_nothing_and_another_does(networks: StableDiffusion):
    def edit(weight: float) -> Tensor:
        return sample(networks, [(SOURCE, [(SOURCE, EditSettings(equalizer={"red": weight}))])])

    same, more = edit(1.0), edit(4.0)
    torch.testing.assert_close(same[1], same[0], atol=ROUNDING, rtol=0)
    assert (more[1] - more[0]).abs().max() > 1e-3


def test_without_guidance_the_null_embeddings_are_not_used(networks: StableDiffusion):
    edits = [(SOURCE, [(SOURCE, SWAP)])]
    control, asked = control_of(networks, edits), []

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        asked.append(timesteps.tolist())
        return torch.zeros_like(latents)

    inputs = (noise(), networks.embed_prompts([SOURCE, SOURCE]), null_embeddings())
    edit_sample(predict, networks.controlled, networks.schedule(STEPS), *inputs, guidance(edits, 1), control)
    assert asked == [[t, t] for t in range(901, 0, -100)]
