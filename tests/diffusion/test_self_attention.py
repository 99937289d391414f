"""MasaCtrl and plug-and-play: layers written out row by row, ranges of steps and layers, and edits of whole samples."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers.edited_samples import ROUNDING, SOURCE, STEPS, SWAP, control_of, guidance, null_embeddings, sample
from helpers.prompts import noise, tokenized
from torch import Tensor

from nti_batch.diffusion.edit_control import EditControl
from nti_batch.diffusion.edit_sample import edit_sample
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.diffusion.prompt_to_prompt import AttentionControl
from nti_batch.models.attention import ControlledAttention, features_from, self_attention_positions
from nti_batch.models.stable_diffusion import StableDiffusion

MASACTRL = EditSettings(attention="masactrl", masactrl_layers=(0.0, 1.0))
MASKED = EditSettings(attention="masactrl", masactrl_words=("circle", "square"), masactrl_threshold=0.5)
PNP = EditSettings(attention="plug-and-play")
MAP = (4, 6)
WORDS = (("tiger", "sat"), "cat")
ROWS = [None, "masactrl", "plug-and-play", "prompt-to-prompt", "masked", None, "masactrl"]
"""For each row of `some_control` its method; the sources are 0 and 5."""


def settings_of(method: str) -> EditSettings:
    masks: dict[str, Any] = {"masactrl_words": WORDS, "masactrl_threshold": 0.4} if method == "masked" else {}
    return EditSettings(
        attention="masactrl" if method == "masked" else method,  # type: ignore[arg-type]
        self_replace_steps=(0.2, 0.5),
        masactrl_steps=(0.3, 0.8),
        masactrl_layers=(0.5, 0.9),
        pnp_attention_steps=(0.1, 0.6),
        pnp_feature_steps=(0.2, 0.7),
        **masks,
    )


def some_control() -> AttentionControl:
    source, edit = tokenized("a tiger sat"), tokenized("a big cat")
    controls = [EditControl.of(source, edit, settings_of(method)) for method in ROWS if method]
    sizes = [MAP, (2, 3)]
    return AttentionControl.of([controls[:4], controls[4:]], STEPS, MAP, sizes, torch.device("cpu"))


def some_maps() -> Tensor:
    return torch.randn(7, 2, math.prod(MAP), 12, generator=torch.Generator().manual_seed(4)).mul(3).softmax(-1)


def foreground(maps: list[Tensor], row: int, words: list[int], size: tuple[int, int]) -> list[bool]:
    """Whether the attention of words at each pixel of a layer is at least 0.4, after its range is moved to 0 ... 1."""
    summed = [sum(m[row, :, pixel, words].mean(0).sum().item() for m in maps) for pixel in range(math.prod(MAP))]
    low, high = min(summed), max(summed)
    places = product(range(size[0]), range(size[1]))
    pixels = [y * MAP[0] // size[0] * MAP[1] + x * MAP[1] // size[1] for y, x in places]
    return [(summed[pixel] - low) / (high - low) >= 0.4 for pixel in pixels]


@pytest.mark.parametrize("of_null", [False, True])
@pytest.mark.parametrize("size", [MAP, (2, 3)])
@pytest.mark.parametrize(("t", "position"), [(10, 0.6), (9, 0.6), (8, 0.6), (6, 0.7), (5, 0.95), (4, 0.6), (2, 0.6)])
def test_a_layer_follows_the_equations(
    networks: StableDiffusion, t: int, position: float, size: tuple[int, int], of_null: bool
):
    control = some_control().at(t)
    maps = [some_maps(), some_maps().flip(0)]
    for m in maps:
        control.cross_attention(m)
    attn = networks.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    pixels, step = math.prod(size), STEPS - t
    hidden = torch.randn(7, pixels, 8, generator=torch.Generator().manual_seed(1))
    active = {
        "prompt-to-prompt": not of_null and 2 <= step < 5,
        "plug-and-play": 1 <= step < 6 and position >= 0.5,
        "masactrl": 3 <= step < 8 and 0.5 <= position < 0.9,
        "masked": 3 <= step < 8 and 0.5 <= position < 0.9,
    }
    expected = []
    for row, method in enumerate(ROWS):
        source = 0 if row < 5 else 5
        takes = source if method and active[method] else row
        q, k, v = {"prompt-to-prompt": (takes, takes, row), "plug-and-play": (takes, takes, row)}.get(
            method or "", (row, takes, takes)
        )
        allowed = torch.ones(pixels, pixels, dtype=torch.bool)
        if method == "masked" and takes != row:
            of_source, of_edit = foreground(maps, source, [2, 3, 4], size), foreground(maps, row, [3], size)
            allowed = torch.tensor([[mine == theirs for theirs in of_source] for mine in of_edit])
            assert not allowed.all() and allowed.any(1).all()
        channels, heads = 8 // attn.heads, []
        for h in range(attn.heads):
            own = slice(h * channels, (h + 1) * channels)
            query, key, value = (
                layer(hidden[of])[:, own] for layer, of in ((attn.to_q, q), (attn.to_k, k), (attn.to_v, v))
            )
            scores = (query @ key.T / math.sqrt(channels)).masked_fill(~allowed, -math.inf)
            heads.append(scores.softmax(-1) @ value)
        expected.append(attn.to_out[0](torch.cat(heads, -1)))
    evaluation = control.of_null() if of_null else control
    if evaluation is None:
        assert not any(active[method] for method in ROWS if method)
        return
    processor = ControlledAttention(evaluation, attn.processor, position)
    torch.testing.assert_close(processor(attn, hidden), torch.stack(expected))


def test_a_pixel_without_a_place_to_attend_to_attends_to_all():
    """The source has no object, since its attention is the same everywhere; the edit has one."""
    control, maps = some_control().at(6), some_maps()
    maps[0] = 1 / 12
    control.cross_attention(maps)
    rows = control.self_attention_of_layer(24, 0.6)
    assert rows is not None and rows.mask is not None and rows.mask.all()
    assert rows.value.tolist() == [0, 0, 2, 3, 0, 5, 5]


def test_only_maps_of_prompt_to_prompt_are_limited_to_coarse_layers():
    edits = [EditControl.of(tokenized("a cat"), tokenized("a cat"), settings_of(m)) for m in ROWS[1:4] if m]
    control = AttentionControl.of([edits], STEPS, (48, 48), [(48, 48)], torch.device("cpu")).at(6)
    fine, coarse = (control.self_attention_of_layer(pixels, 0.6) for pixels in (48 * 48, 24 * 24))
    assert fine and coarse and fine.key.tolist() == [0, 0, 0, 3] and coarse.key.tolist() == [0, 0, 0, 0]


def test_the_masks_of_a_null_evaluation_are_those_of_the_prompts_in_each_layer():
    control = some_control().at(6)
    before = control.self_attention_of_layer(24, 0.6)
    control.cross_attention(some_maps())
    after = control.self_attention_of_layer(24, 0.7)
    of_null = control.of_null()
    assert before and after and of_null and before.mask is None and after.mask is not None
    first, second = (of_null.self_attention_of_layer(24, position) for position in (0.6, 0.7))
    assert first and second and first.mask is None and second.mask is not None
    assert torch.equal(second.mask, after.mask)
    assert not of_null.needs_maps(24)


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        (EditSettings(attention="masactrl"), 50, (4, 50)),
        (EditSettings(attention="masactrl"), 20, (1, 20)),
        (EditSettings(attention="masactrl", masactrl_steps=0.5), 7, (0, 3)),
        (EditSettings(attention="plug-and-play"), 50, (0, 25)),
        (EditSettings(attention="plug-and-play", pnp_attention_steps=(0.29, 0.58)), 50, (14, 28)),
        (EditSettings(self_replace_steps=0.6, masactrl_steps=1.0), 50, (0, 30)),
    ],
)
def test_a_method_controls_the_steps_of_its_authors_code(settings: EditSettings, steps: int, expected: tuple[int, int]):
    edit = EditControl.of(tokenized("a cat"), tokenized("a cat"), settings)
    control = AttentionControl.of([[edit]], steps, (4, 4), [(4, 4)], torch.device("cpu"))
    active = [bool(control.at(t).self_attention.active.any()) for t in range(steps, 0, -1)]
    assert [i for i, is_active in enumerate(active) if is_active] == list(range(*expected))
    features = [i for i in range(steps) if control.at(steps - i).self_attention.feature_rows is not None]
    assert features == (list(range(40)) if settings.attention == "plug-and-play" else [])
    assert all((control.at(t).cross is None) == (settings.attention != "prompt-to-prompt") for t in (steps, steps - 1))


def stable_diffusion_unet(**changes: object) -> UNet2DConditionModel:
    """The layers of Stable Diffusion 1.5, with few channels."""
    size = {"block_out_channels": (4, 4, 4, 4), "cross_attention_dim": 4, "norm_num_groups": 2, "sample_size": 8}
    return UNet2DConditionModel(attention_head_dim=2, **{**size, **changes})


@pytest.mark.parametrize(
    ("changes", "number", "first_of_masactrl", "first_of_pnp", "features"),
    [
        ({}, 16, "up_blocks.2.attentions.0", "up_blocks.1.attentions.1", "up_blocks.1.resnets.1"),
        (
            {
                "block_out_channels": (4, 4, 4),
                "layers_per_block": 1,
                "down_block_types": ("CrossAttnDownBlock2D",) * 3,
                "up_block_types": ("CrossAttnUpBlock2D",) * 3,
            },
            10,
            "up_blocks.1.attentions.0",
            "up_blocks.0.attentions.1",
            "up_blocks.1.resnets.0",
        ),
    ],
)
def test_layers_are_those_of_the_authors_code_in_stable_diffusion_and_alike_in_a_smaller_network(
    changes: dict[str, object], number: int, first_of_masactrl: str, first_of_pnp: str, features: str
):
    unet = stable_diffusion_unet(**changes)
    ran: list[str] = []
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    with torch.no_grad():
        unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 3, 4))
    positions = self_attention_positions(unet)
    assert list(positions) == [f"{name}.processor" for name in ran]
    assert list(positions.values()) == [k / number for k in range(number)]
    edits = [EditSettings(attention="masactrl", masactrl_steps=1.0), EditSettings(attention="plug-and-play")]
    for settings, first in zip(edits, (first_of_masactrl, first_of_pnp), strict=True):
        edit = EditControl.of(tokenized("a cat"), tokenized("a cat"), settings)
        control = AttentionControl.of([[edit]], STEPS, (8, 8), [(8, 8)], torch.device("cpu")).at(STEPS)
        taken = [name for name in positions if control.self_attention_of_layer(64, positions[name])]
        assert taken == list(positions)[-len(taken) :]
        assert taken[0].startswith(first)
    with features_from(unet, torch.tensor([0, 0])):
        hooked = [name for name, module in unet.named_modules() if module._forward_hooks and "attn1" not in name]
    assert hooked == [f"{features}.conv2"]


def test_features_are_the_sources_and_the_network_is_left_as_it_was(networks: StableDiffusion):
    control = some_control().at(7).self_attention
    assert control.feature_rows is not None
    assert control.feature_rows.tolist() == [0, 1, 0, 3, 4, 5, 6]
    block = networks.unet.up_blocks[0].resnets[1]
    hidden, embedding = torch.randn(7, block.in_channels, 4, 4), torch.randn(7, 32)
    with torch.no_grad():
        free = block(hidden, embedding)
        with pytest.raises(RuntimeError, match="stop"), features_from(networks.unet, control.feature_rows):
            taken = block(hidden, embedding)
            raise RuntimeError("stop")
        assert torch.equal(block(hidden, embedding), free)
        shortcut = block.conv_shortcut(hidden)
    torch.testing.assert_close(taken - shortcut, (free - shortcut)[control.feature_rows])


@pytest.mark.parametrize("settings", [MASACTRL, PNP, EditSettings(attention="masactrl")])
def test_an_edit_to_the_same_prompt_is_the_source(networks: StableDiffusion, settings: EditSettings):
    source, edit = sample(networks, [(SOURCE, [(SOURCE, settings)])])
    torch.testing.assert_close(edit, source, atol=ROUNDING, rtol=0)


def test_methods_mix_in_a_batch_and_each_edit_is_as_if_alone(networks: StableDiffusion):
    prompt = "a blue square on the left"
    edits = [(prompt, settings) for settings in (MASACTRL, SWAP, PNP, MASKED)]
    blended = EditSettings(attention="plug-and-play", blend_words=("star", "heart"), blend_threshold=0.9)
    second = ("a small star", [("a small green heart", blended)])
    together = sample(networks, [(SOURCE, edits), second])
    for row, edit in zip(together[1:5], edits, strict=True):
        source, alone = sample(networks, [(SOURCE, [edit])])
        torch.testing.assert_close(row, alone, atol=ROUNDING, rtol=0)
        torch.testing.assert_close(together[0], source, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(together[5:], sample(networks, [second, second])[2:], atol=ROUNDING, rtol=0)
    differences = [(a - b).abs().max() for i, a in enumerate(together[:5]) for b in together[:i]]
    assert min(differences) > 1e-3


def test_null_embeddings_are_controlled_where_the_method_does_so(networks: StableDiffusion):
    def controlled(*settings: EditSettings) -> list[bool]:
        edits = [(SOURCE, [(SOURCE, of_edit) for of_edit in settings])]
        control, before, seen = control_of(networks, edits), networks.unet.attn_processors, []

        def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
            seen.append(networks.unet.attn_processors != before)
            return torch.zeros_like(latents)

        prompts = networks.embed_prompts([SOURCE] * (1 + len(settings)))
        inputs = (noise(), prompts, null_embeddings(), guidance(edits), control)
        edit_sample(predict, networks.controlled, networks.schedule(STEPS), *inputs)
        return seen[1::2]

    late = EditSettings(attention="masactrl", masactrl_steps=(0.4, 1))
    assert controlled(SWAP) == [False] * STEPS
    assert controlled(PNP) == [True] * 8 + [False] * 2
    assert controlled(SWAP, late) == [False] * 4 + [True] * 6


def test_with_direct_inversion_an_edit_takes_from_the_pivot(networks: StableDiffusion):
    edits = [(SOURCE, [("a blue square on the left", MASACTRL)])]
    prompts = networks.embed_prompts([SOURCE, edits[0][1][0][0]])

    def edit(seed: int) -> Tensor:
        pivot = torch.randn(STEPS, 1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        inputs = (noise(), prompts, null_embeddings(), guidance(edits), control_of(networks, edits))
        rows = edit_sample(networks.predict, networks.controlled, networks.schedule(STEPS), *inputs, list(pivot))
        assert torch.equal(rows[0], pivot[-1, 0])
        return rows[1]

    assert torch.equal(edit(0), edit(0))
    assert (edit(0) - edit(1)).abs().max() > 1e-3
