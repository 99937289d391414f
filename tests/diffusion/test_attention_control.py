"""Attention under control, against the equations of prompt-to-prompt written out row by row."""

import math
from itertools import product

import pytest
import torch
from helpers.edited_samples import SOURCE, STEPS, SWAP, control_of, guidance, null_embeddings
from helpers.prompts import noise, tokenized
from torch import Tensor

from nti_batch.diffusion.edit_control import EditControl
from nti_batch.diffusion.edit_sample import edit_sample
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.diffusion.prompt_to_prompt import AttentionControl, LocalBlend
from nti_batch.models.attention import ControlledAttention
from nti_batch.models.stable_diffusion import StableDiffusion


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


MAP, LATENTS = (6, 8), (12, 16)
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
            start, end = (int(11 * share) for share in edit.cross_replace_steps[:, j].tolist())
            if start <= STEPS - t < end:
                partners = [i for i in range(12) if edit.alignment[i, j] != 0]
                replaced = sum(maps[source, h, p, i] * edit.alignment[i, j] for i in partners) or maps[row, h, p, j]
                expected[row, h, p, j] = edit.weights[j] * replaced
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("steps", "share", "cross", "rest"),
    [
        (50, 0.4, 20, 20),
        (50, 0.6, 30, 30),
        (50, 0.99, 50, 49),
        (20, 0.38, 7, 7),
        (20, 0.29, 6, 5),
        (50, 0.58, 29, 28),  # 0.58 * 50 is 28.999999999999996 in floating point
        (100, 0.29, 29, 28),
        (5, 0.5, 3, 2),
        (4, 0.1, 0, 0),
        (7, 1.0, 7, 7),
        (7, 0.0, 0, 0),
    ],
)
def test_a_share_selects_the_steps_of_the_authors_code(steps: int, share: float, cross: int, rest: int):
    settings = EditSettings(
        cross_replace_steps=share, self_replace_steps=share, blend_words=("cat", "cat"), blend_start=share
    )
    edit = EditControl.of(tokenized("a cat"), tokenized("a cat"), settings)
    control = AttentionControl.of([[edit]], steps, (4, 4), [(4, 4)], torch.device("cpu"))
    of_steps = [control.at(t) for t in range(steps, 0, -1)]
    assert [step.cross is not None for step in of_steps] == [True] * cross + [False] * (steps - cross)
    assert [step.self_attention.is_active for step in of_steps] == [True] * rest + [False] * (steps - rest)
    latents, blended = torch.randn(2, 4, 4, 4), []
    for t in range(steps, 0, -1):
        blend = LocalBlend(control)
        blend.collect(torch.zeros(2, 1, 16, 12))  # no attention anywhere: all of the edit becomes its source
        blended.append(not torch.equal(blend(latents, t), latents))
    assert blended == [False] * rest + [True] * (steps - rest)


def test_a_range_of_steps_has_both_ends_of_the_authors_code():
    edit = EditControl.of(
        tokenized("a cat"),
        tokenized("a cat"),
        EditSettings(cross_replace_steps=(0.2, 0.55), self_replace_steps=(0.29, 0.58)),
    )
    control = AttentionControl.of([[edit]], 50, (4, 4), [(4, 4)], torch.device("cpu"))
    of_steps = [control.at(t) for t in range(50, 0, -1)]
    assert [i for i, step in enumerate(of_steps) if step.cross is not None] == list(range(10, 28))
    assert [i for i, step in enumerate(of_steps) if step.self_attention.is_active] == list(range(14, 28))


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


def attended(maps: list[Tensor], row: int, words: Tensor, threshold: float, distance: int = 1) -> list[list[bool]]:
    """The mask of a row's words at the latents' size, from maps of half of it, pixel by pixel."""
    pixels = list(product(range(MAP[0]), range(MAP[1])))
    summed = {(y, x): sum((m[row].mean(0)[y * MAP[1] + x] * words).sum().item() for m in maps) for y, x in pixels}
    near = {(y, x): [(v, u) for v, u in pixels if max(abs(v - y), abs(u - x)) <= distance] for y, x in pixels}
    pooled = {place: max(summed[other] for other in near[place]) for place in pixels}
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
            mine = attended(maps, row, edit.blend_words[1], edit.blend_threshold)
            sources = attended(maps, place[0], edit.blend_words[0], edit.blend_threshold)
            for y, x in product(range(LATENTS[0]), range(LATENTS[1])):
                if not (mine[y][x] or sources[y][x]):
                    expected[row, :, y, x] = latents[place[0], :, y, x]
                    kept += 1
    assert torch.equal(blend(latents, t), expected)
    assert (kept > 20) == (t <= 8)


@pytest.mark.parametrize("words", [("tiger", ""), ("", "cat"), ("", "")])
def test_without_one_blend_word_the_mask_is_the_other_words_alone(words: tuple[str, str]):
    settings = EditSettings(blend_words=words, blend_threshold=0.8, blend_start=0)
    edit = EditControl.of(tokenized("a tiger sat"), tokenized("a cat sat"), settings)
    control = AttentionControl.of([[edit]], STEPS, LATENTS, [MAP], torch.device("cpu"))
    blend, maps, latents = LocalBlend(control), some_maps(MAP)[:2], torch.randn(2, 4, *LATENTS)
    blend.collect(maps)
    row, chosen = (0, [2, 3]) if words[0] else (1, [2])
    of_word = torch.zeros(12).index_fill(0, torch.tensor(chosen), 1.0)
    mask = torch.tensor(attended([maps], row, of_word, 0.8)) if any(words) else torch.zeros(LATENTS, dtype=torch.bool)
    assert torch.equal(blend(latents, STEPS)[1], torch.where(mask, latents[1], latents[0]))
    assert bool(mask.any()) == any(words) and not mask.all()


@pytest.mark.parametrize("subtracted", [("sat", "sat"), ("sat", ""), ("", ("sat", "#0"))])
def test_local_blend_takes_several_words_and_keeps_out_of_others(subtracted: tuple[str, str]):
    settings = EditSettings(
        blend_words=(("tiger", "#0"), ("cat", "big")),
        blend_threshold=0.6,
        blend_start=0,
        subtract_words=subtracted,
        subtract_threshold=0.5,
    )
    source, edit = tokenized("a tiger sat"), tokenized("a big cat sat")
    plain = EditSettings(blend_words=("tiger", "cat"), blend_threshold=0.6, blend_start=0)
    controls = [EditControl.of(source, edit, s) for s in (settings, plain)]
    control = AttentionControl.of([controls], STEPS, LATENTS, [MAP], torch.device("cpu"))
    blend, maps, latents = LocalBlend(control), [some_maps(MAP)[:3], some_maps(MAP)[2:]], torch.randn(3, 4, *LATENTS)
    for m in maps:
        blend.collect(m)
    tokens = {"tiger": [2, 3], "#0": [1], "cat": [3], "big": [2]}
    of_source = {"sat": [4], "": []} | tokens
    of_edit = {"sat": [4], "": []} | tokens

    def mask(row: int, words: list[int], threshold: float, distance: int) -> Tensor:
        chosen = torch.zeros(12).index_fill(0, torch.tensor(words, dtype=torch.long), 1.0)
        return torch.tensor(attended(maps, row, chosen, threshold, distance))

    first, second = ((words,) if isinstance(words, str) else words for words in subtracted)
    may_change = mask(0, [1, 2, 3], 0.6, 1) | mask(1, [2, 3], 0.6, 1)
    keeps = mask(0, [i for word in first for i in of_source[word]], 0.5, 0)
    keeps |= mask(1, [i for word in second for i in of_edit[word]], 0.5, 0)
    found = blend(latents, STEPS)
    assert torch.equal(found[1], torch.where(may_change & ~keeps, latents[1], latents[0]))
    assert (may_change & keeps).any() and (may_change & ~keeps).any()
    without = mask(0, [2, 3], 0.6, 1) | mask(2, [3], 0.6, 1)
    assert torch.equal(found[2], torch.where(without, latents[2], latents[0])), "the other edit keeps nothing"


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
        assert control.at(t).self_attention.is_active == (t >= 5)
    assert torch.equal(predict(10), free[10])
    assert not control.blends


def test_only_the_evaluations_of_the_prompts_are_controlled(networks: StableDiffusion):
    edits = [(SOURCE, [(SOURCE, SWAP)])]
    control, before = control_of(networks, edits), networks.unet.attn_processors
    controlled = []

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        controlled.append(networks.unet.attn_processors != before)
        return torch.zeros_like(latents)

    inputs = (noise(), networks.embed_prompts([SOURCE, SOURCE]), null_embeddings())
    edit_sample(predict, networks.controlled, networks.schedule(STEPS), *inputs, guidance(edits), control)
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
