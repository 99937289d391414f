"""Attention control against a second implementation in loops, and properties that hold for any network."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.inversions import SETTINGS
from helpers.prompts import noise, tokenized
from jsonargparse import ArgumentParser
from torch import Tensor

from nti_batch.diffusion.ddim import ddim_sample
from nti_batch.diffusion.edit_settings import EditControl, EditSettings
from nti_batch.diffusion.prompt_to_prompt import AttentionControl, LocalBlend, edit_sample
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.editing.reconstruct import reconstruct
from nti_batch.models.attention import ControlledAttention
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.manifest_rows import Metadata
from nti_batch.output.serialization import StoredInversion

STEPS = 10
SCALE = 7.5
GAIN = 3.0
ROUNDING = 1e-4
"""A start that differs in its last bit moves a sample by 3e-5; rows of one batch may be rounded differently."""

SOURCE = "a red circle on the left"
SWAP = EditSettings(kind="replace", cross_replace_steps=0.8, self_replace_steps=0.6)


@pytest.fixture(scope="module")
def networks(tiny_model: Path) -> StableDiffusion:
    """The tiny model with louder attention, so that a change of it is no rounding error."""
    networks = StableDiffusion.load(ModelSource(str(tiny_model)))
    with torch.no_grad():
        for name, parameter in networks.unet.named_parameters():
            if "to_q" in name or "to_k" in name:
                parameter.mul_(GAIN)
    return networks


def control_of(
    networks: StableDiffusion,
    edits: Sequence[tuple[str, Sequence[tuple[str, EditSettings]]]],
    size: tuple[int, int] = (8, 8),
) -> AttentionControl:
    controls = [
        [
            EditControl.of(networks.tokenize(source), networks.tokenize(prompt), settings)
            for prompt, settings in of_image
        ]
        for source, of_image in edits
    ]
    return AttentionControl.of(controls, STEPS, size, networks.cross_attention_sizes(*size), networks.device)


def null_embeddings(images: int = 1) -> list[Tensor]:
    of_images = [torch.randn(STEPS, 77, 8, generator=torch.Generator().manual_seed(9 - i)) for i in range(images)]
    return list(torch.stack(of_images, 1))


def sample(
    networks: StableDiffusion,
    edits: Sequence[tuple[str, Sequence[tuple[str, EditSettings]]]],
    size: tuple[int, int] = (8, 8),
) -> Tensor:
    control = control_of(networks, edits, size)
    prompts = [prompt for source, of_image in edits for prompt in (source, *(p for p, _ in of_image))]
    inputs = (noise(size, len(edits)), networks.embed_prompts(prompts), null_embeddings(len(edits)))
    return edit_sample(networks.predict, networks.controlled, networks.schedule(STEPS), *inputs, SCALE, control)


def plain(networks: StableDiffusion, prompt: str, size: tuple[int, int] = (8, 8), image: int = 0) -> Tensor:
    nulls = [null[image:] for null in null_embeddings(image + 1)]
    inputs = (noise(size, image + 1)[image:], networks.embed_prompts([prompt]), nulls)
    return ddim_sample(networks.predict, networks.schedule(STEPS), *inputs, SCALE)


def some_controls(length: int = 12) -> list[list[EditControl]]:
    """Two images with two edits and one; nothing of them is trivial."""
    source, other = tokenized("a tiger sat", length), tokenized("one cat", length)
    swap = EditSettings(
        kind="replace",
        cross_replace_steps={"default_": 0.5, "cat": (0.2, 0.9)},
        self_replace_steps=0.3,
        equalizer={"cat": 3.0, "sat": -0.5},
        blend_words=("tiger", "cat"),
        blend_threshold=0.8,
    )
    refine = EditSettings(cross_replace_steps=(0.1, 0.7), self_replace_steps=(0.2, 0.8), equalizer={"big tiger": 0.5})
    blended = EditSettings(
        cross_replace_steps=0.0,
        self_replace_steps=0.0,
        blend_words=("cat", "tiger"),
        blend_threshold=0.9,
        blend_start=0.5,
    )
    return [
        [
            EditControl.of(source, tokenized("a cat sat", length), swap),
            EditControl.of(source, tokenized("a big tiger sat on", length), refine),
        ],
        [EditControl.of(other, tokenized("one tiger", length), blended)],
    ]


def some_maps(size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 2, math.prod(size), 12, generator=generator).mul(3).softmax(-1)


ROWS = [None, (0, 0, 0), (0, 0, 1), None, (3, 1, 0)]
"""For each row of `some_controls`: source's row, image, number of the edit."""


@pytest.mark.parametrize("t", range(STEPS, 0, -1))
def test_cross_maps_follow_the_equation(t: int):
    controls, maps = some_controls(), some_maps((2, 3))
    control = AttentionControl.of(controls, STEPS, (4, 6), [(2, 3)], torch.device("cpu"))
    found = control.at(t).cross_attention(maps)
    expected = maps.clone()
    for row, place in enumerate(ROWS):
        for h, p, j in product(range(2), range(6), range(12)) if place else ():
            source, edit = place[0], controls[place[1]][place[2]]
            start, end = (round(STEPS * share) for share in edit.cross_replace_steps[:, j].tolist())
            if start <= STEPS - t < end:
                partners = [i for i in range(12) if edit.alignment[i, j] != 0]
                replaced = sum(maps[source, h, p, i] * edit.alignment[i, j] for i in partners) or maps[row, h, p, j]
                expected[row, h, p, j] = edit.weights[j] * replaced
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("t", [10, 8, 7, 3, 2])
def test_self_attention_takes_the_map_of_the_source(networks: StableDiffusion, t: int):
    control = AttentionControl.of(some_controls(), STEPS, (4, 6), [(2, 3)], torch.device("cpu"))
    attn = networks.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(1))
    takes = {1: 0 if 10 - t < 3 else 1, 2: 0 if 2 <= 10 - t < 8 else 2}
    expected = []
    for row in range(5):
        source, channels, heads = hidden[takes.get(row, row)], 8 // attn.heads, []
        for h in range(attn.heads):
            own = slice(h * channels, (h + 1) * channels)
            query, key = attn.to_q(source)[:, own], attn.to_k(source)[:, own]
            heads.append((query @ key.T / math.sqrt(channels)).softmax(-1) @ attn.to_v(hidden[row])[:, own])
        expected.append(attn.to_out[0](torch.cat(heads, -1)))
    processor = ControlledAttention(control.at(t), attn.processor)
    torch.testing.assert_close(processor(attn, hidden), torch.stack(expected))


@pytest.mark.parametrize(
    ("latents", "layer", "replaced"),
    [
        ((64, 64), (64, 64), False),
        ((64, 64), (32, 32), True),
        ((96, 96), (48, 48), True),
        ((33, 32), (33, 32), False),
        ((32, 32), (32, 32), True),
        ((16, 16), (16, 16), True),
    ],
)
def test_self_attention_is_the_sources_below_the_latents_resolution_and_up_to_32_x_32(
    networks: StableDiffusion, latents: tuple[int, int], layer: tuple[int, int], replaced: bool
):
    control = AttentionControl.of(some_controls(), STEPS, latents, [layer], torch.device("cpu"))
    attn = networks.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(5, math.prod(layer), 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, own = ControlledAttention(control.at(STEPS), attn.processor)(attn, hidden), attn(hidden)
    assert torch.equal(found, own) is not replaced


MAP, LATENTS = (6, 8), (12, 16)


def attended(maps: list[Tensor], row: int, words: Tensor, threshold: float) -> list[list[bool]]:
    """The mask of a row's words at the latents' size, from maps of half of it, pixel by pixel."""
    pixels = list(product(range(MAP[0]), range(MAP[1])))
    summed = {(y, x): sum((m[row].mean(0)[y * MAP[1] + x] * words).sum().item() for m in maps) for y, x in pixels}
    pooled = {(y, x): max(summed[v, u] for v, u in pixels if max(abs(v - y), abs(u - x)) < 2) for y, x in pixels}
    highest = max(pooled.values())
    return [
        [highest > 0 and pooled[y // 2, x // 2] / highest > threshold for x in range(LATENTS[1])]
        for y in range(LATENTS[0])
    ]


@pytest.mark.parametrize("t", [10, 9, 8, 6, 5, 1])
def test_local_blend_follows_the_equation(t: int):
    controls = some_controls()
    control = AttentionControl.of(controls, STEPS, LATENTS, [MAP], torch.device("cpu"))
    maps, blend = [some_maps(MAP), some_maps(MAP).flip(0)], LocalBlend(control)
    for m in maps:
        blend.collect(m)
    latents = torch.randn(5, 4, *LATENTS)
    expected, kept = latents.clone(), 0
    for row, place in enumerate(ROWS):
        edit = controls[place[1]][place[2]] if place else None
        if edit and edit.blend_start < 1 and STEPS - t >= STEPS * edit.blend_start:
            mine = attended(maps, row, edit.edit_words, edit.blend_threshold)
            sources = attended(maps, place[0], edit.source_words, edit.blend_threshold)
            for y, x in product(range(LATENTS[0]), range(LATENTS[1])):
                if not (mine[y][x] or sources[y][x]):
                    expected[row, :, y, x] = latents[place[0], :, y, x]
                    kept += 1
    assert torch.equal(blend(latents, t), expected)
    assert (kept > 20) == (t <= 8)


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
    control = control_of(networks, [(SOURCE, [(prompts[1], nothing)]), (prompts[2], [(p, SWAP) for p in prompts[3:]])])
    pivot = torch.randn(STEPS, 2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    seen: list[Tensor] = []

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        seen.append(latents[control.rows.sources])
        return networks.predict(latents, timesteps, embeddings)

    inputs = (start, networks.embed_prompts(prompts), null_embeddings(2), SCALE, control)
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
    control, asked = control_of(networks, [(SOURCE, [(SOURCE, SWAP)])]), []

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        asked.append(timesteps.tolist())
        return torch.zeros_like(latents)

    inputs = (noise(), networks.embed_prompts([SOURCE, SOURCE]), null_embeddings())
    edit_sample(predict, networks.controlled, networks.schedule(STEPS), *inputs, 1, control)
    assert asked == [[t, t] for t in range(901, 0, -100)]


def test_where_nothing_is_controlled_the_layers_own_attention_runs_bit_for_bit(networks: StableDiffusion):
    edits = [(SOURCE, [("a blue square on the left", SWAP)])]
    control, prompts = control_of(networks, edits), networks.embed_prompts([SOURCE, "a blue square on the left"])
    latents = torch.randn(2, 4, 8, 8)

    @torch.no_grad()
    def predict(t: int) -> Tensor:
        return networks.predict(latents, networks.schedule(STEPS).network_timesteps[[t, t]], prompts)

    free = {t: predict(t) for t in (10, 3, 2, 1)}
    for t in (10, 3, 2, 1):
        with networks.controlled(control.at(t)):
            assert torch.equal(predict(t), free[t]) == (t < 3)  # the larger share is 0.8
        assert (control.at(t).self_rows is None) == (t < 5)
    assert torch.equal(predict(10), free[10])
    assert not control.blends


def test_only_the_evaluations_of_the_prompts_are_controlled(networks: StableDiffusion):
    control, before = control_of(networks, [(SOURCE, [(SOURCE, SWAP)])]), networks.unet.attn_processors
    controlled = []

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        controlled.append(networks.unet.attn_processors != before)
        return torch.zeros_like(latents)

    inputs = (noise(), networks.embed_prompts([SOURCE, SOURCE]), null_embeddings())
    edit_sample(predict, networks.controlled, networks.schedule(STEPS), *inputs, SCALE, control)
    assert controlled == [True, False] * STEPS


def test_only_the_blend_words_maps_of_one_resolution_are_kept(networks: StableDiffusion):
    uncontrolled = EditSettings(cross_replace_steps=0, self_replace_steps=0, blend_words=("red", "red"))
    control = control_of(networks, [(SOURCE, [(SOURCE, uncontrolled)] * 2)], (8, 12))
    assert control.map_size == (8, 12)
    blend = LocalBlend(control)
    with networks.controlled(control.at(STEPS, blend)), torch.no_grad():
        prompts = networks.embed_prompts([SOURCE] * 3)
        networks.predict(noise((8, 12)).repeat(3, 1, 1, 1), torch.tensor([901] * 3), prompts)
    assert blend.maps is not None
    assert blend.maps.shape == (3, 2, 96)


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([(64, 64), (32, 32), (16, 16), (8, 8)], (16, 16)),
        ([(96, 96), (48, 48), (24, 24), (12, 12)], (12, 12)),
        ([(96, 64), (48, 32), (24, 16), (12, 8)], (24, 16)),
        ([(16, 16), (8, 8), (4, 4)], (16, 16)),
        ([(4, 4)], (4, 4)),
    ],
)
def test_blend_maps_are_those_nearest_to_256_pixels(sizes: list[tuple[int, int]], chosen: tuple[int, int]):
    assert AttentionControl.of(some_controls(), STEPS, sizes[0], sizes, torch.device("cpu")).map_size == chosen


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (7, 9)])
def test_the_sizes_of_the_cross_attention_layers_are_known(networks: StableDiffusion, size: tuple[int, int]):
    seen = set()
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.add(args[0].shape[1]))
        for name, module in networks.unet.named_modules()
        if name.endswith("attn2")
    ]
    with torch.no_grad():
        networks.predict(noise(size), torch.tensor([1]), networks.embed_prompts([""]))
    for hook in hooks:
        hook.remove()
    assert {h * w for h, w in networks.cross_attention_sizes(*size)} == seen


def test_a_failure_leaves_the_network_as_it_was(networks: StableDiffusion):
    before, control = networks.unet.attn_processors, control_of(networks, [(SOURCE, [(SOURCE, SWAP)])])
    with pytest.raises(RuntimeError, match="stop"), networks.controlled(control.at(STEPS)):
        raise RuntimeError("stop")
    assert networks.unet.attn_processors == before


def test_all_wrong_settings_are_named_at_once():
    expected = (
        "cross_replace_steps['default_'] is 1.5, allowed: 0 to 1; "
        "cross_replace_steps['red'] is [0.5, 0.2], allowed: [start, end] with 0 <= start <= end <= 1; "
        "self_replace_steps is nan, allowed: 0 to 1; blend_start is -1, allowed: 0 to 1; "
        "equalizer['red'] is nan, allowed: finite numbers; kind is 'swap', allowed: 'replace' or 'refine'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        EditSettings(
            kind="swap",  # type: ignore[arg-type]
            cross_replace_steps={"default_": 1.5, "red": (0.5, 0.2)},
            self_replace_steps=math.nan,
            blend_start=-1,
            equalizer={"red": math.nan},
        )


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (1.5, "cross_replace_steps is 1.5, allowed: 0 to 1"),
        ((0.1, 0.2, 0.3), "cross_replace_steps is [0.1, 0.2, 0.3], allowed: [start, end] with"),
        ({"red": 1}, "cross_replace_steps is {'red': 1}, allowed: words with the key 'default_'"),
    ],
)
def test_wrong_ranges_of_steps_are_refused(steps: Any, words: str):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        EditSettings(cross_replace_steps=steps)


def test_a_number_of_steps_is_the_range_from_the_start():
    source, edit = tokenized("a tiger sat"), tokenized("a cat sat")
    cases: list[tuple[Any, Any]] = [(0.7, 0.3), ((0, 0.7), (0, 0.3)), ({"default_": 0.7, "cat": (0, 0.7)}, 0.3)]
    number, as_range, by_word = (
        EditControl.of(source, edit, EditSettings(cross_replace_steps=steps, self_replace_steps=own))
        for steps, own in cases
    )
    for other in (as_range, by_word):
        assert torch.equal(other.cross_replace_steps, number.cross_replace_steps)
        assert other.self_replace_steps == number.self_replace_steps


@pytest.mark.parametrize(
    "settings",
    [
        EditSettings(),
        EditSettings(cross_replace_steps=(0.1, 0.5), self_replace_steps=(0.2, 1), blend_words=("cat", "dog")),
        EditSettings(cross_replace_steps={"default_": (0.1, 0.5), "red": 1}, equalizer={"red": 2}),
    ],
)
def test_settings_come_back_from_json(settings: EditSettings):
    assert EditSettings(**json.loads(json.dumps(settings.to_json()))) == settings
    assert json.loads(json.dumps(settings.to_json())) == settings.to_json()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.4", 0.4),
        ("[0.1, 0.5]", (0.1, 0.5)),
        ('{"default_": 0.4, "blue sky": [0, 1]}', {"default_": 0.4, "blue sky": (0.0, 1.0)}),
    ],
)
def test_the_command_line_takes_every_form_of_steps(text: str, expected: object):
    parser = ArgumentParser()
    parser.add_class_arguments(EditSettings, "edit")
    parsed = parser.parse_args([f"--edit.cross_replace_steps={text}"])
    assert EditSettings(**parsed.edit).cross_replace_steps == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"cross_replace_steps": {"default_": 0.5, "dog": 1}},
        {"equalizer": {"dog": 1}},
        {"blend_words": ("dog", "cat")},
    ],
)
def test_a_word_that_is_not_in_its_prompt_is_refused(settings: dict[str, Any]):
    with pytest.raises(ValueError, match="'dog' is not in what the text encoder reads of the prompt"):
        EditControl.of(tokenized("a tiger"), tokenized("a cat"), EditSettings(**settings))
