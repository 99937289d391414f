"""Settings of edits: their forms, limits and words."""

import json
import math
import re
from typing import Any

import pytest
import torch
from helpers.prompts import tokenized
from jsonargparse import ArgumentParser

from nti_batch.diffusion.edit_control import EditControl
from nti_batch.diffusion.edit_settings import EditSettings


def test_all_wrong_settings_are_named_at_once():
    expected = (
        "cross_replace_steps['default_'] is 1.5, allowed: 0 to 1; "
        "cross_replace_steps['red'] is [0.5, 0.2], allowed: [start, end] with 0 <= start <= end <= 1; "
        "self_replace_steps is nan, allowed: 0 to 1; blend_start is -1, allowed: 0 to 1; "
        "skip_steps is 1.1, allowed: 0 to 1; quantile is nan, allowed: 0 to 1; recon_lr is 2, allowed: 0 to 1; "
        "recon_start is -0.1, allowed: 0 to 1; guidance_scale is inf, allowed: at least 1, or null for the "
        "inversion's; proximal is 'l2', allowed: 'l0' or 'l1', or null; dilate_mask is -1, allowed: 0 to 64; "
        "equalizer['red'] is nan, allowed: finite numbers; kind is 'swap', allowed: 'replace' or 'refine'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        EditSettings(
            kind="swap",  # type: ignore[arg-type]
            cross_replace_steps={"default_": 1.5, "red": (0.5, 0.2)},
            self_replace_steps=math.nan,
            blend_start=-1,
            skip_steps=1.1,
            quantile=math.nan,
            recon_lr=2,
            recon_start=-0.1,
            guidance_scale=math.inf,
            proximal="l2",  # type: ignore[arg-type]
            dilate_mask=-1,
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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attention": "pnp"}, "attention is 'pnp', allowed: 'prompt-to-prompt' or 'masactrl' or 'plug-and-play'"),
        ({"masactrl_steps": (0.5, 0.2)}, "masactrl_steps is [0.5, 0.2], allowed: [start, end] with"),
        ({"masactrl_layers": (0.2, 1.1)}, "masactrl_layers is [0.2, 1.1], allowed: [start, end] with"),
        ({"masactrl_layers": 0.5}, "masactrl_layers is 0.5, allowed: [start, end] with 0 <= start <= end <= 1"),
        ({"masactrl_threshold": 2.0}, "masactrl_threshold is 2.0, allowed: 0 to 1"),
        ({"pnp_feature_steps": -0.1}, "pnp_feature_steps is -0.1, allowed: 0 to 1"),
        ({"pnp_attention_steps": 1.1}, "pnp_attention_steps is 1.1, allowed: 0 to 1"),
        ({"blend_words": "cat"}, "blend_words is 'cat', allowed: two words, or two lists of words"),
        ({"blend_words": ("a", "b", "c")}, "blend_words is ['a', 'b', 'c'], allowed: two words"),
        ({"blend_words": ("a", ("b", 3))}, "blend_words has the word 3, allowed: texts"),
        ({"masactrl_words": ("a",)}, "masactrl_words is ['a'], allowed: two words"),
        ({"equalizer": {1: 2.0}}, "equalizer has the word 1, allowed: texts; in YAML put numbers"),
        ({"equalizer": {"a": 1e39}}, "equalizer['a'] is 1e+39, allowed: finite numbers"),
        ({"guidance_scale": 1e39}, "guidance_scale is 1e+39, allowed: at least 1"),
        ({"cross_replace_steps": {"default_": 0.5, True: 1}}, "cross_replace_steps has the word True, allowed: texts"),
        ({"blend_words": ("a", "\ud800")}, "blend_words has the word '\\ud800', allowed: texts in Unicode"),
        ({"subtract_words": ("a", "b")}, "subtract_words is ['a', 'b'], allowed: null, or together with blend_words"),
    ],
)
def test_wrong_settings_of_a_method_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        EditSettings(**settings)


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
        EditSettings(attention="masactrl", masactrl_steps=(0.1, 1), masactrl_words=("cat", ("dog", "#1"))),
        EditSettings(blend_words=(("cat", "sofa"), ""), subtract_words=("", ("dog", "red")), subtract_threshold=0.4),
        EditSettings(guidance_scale=15, skip_steps=0.36, proximal="l0", quantile=0.5),
        EditSettings(recon_lr=1, recon_start=0, dilate_mask=2),
    ],
)
def test_settings_come_back_from_json(settings: EditSettings):
    assert EditSettings(**json.loads(json.dumps(settings.to_json()))) == settings
    assert json.loads(json.dumps(settings.to_json())) == settings.to_json()


def test_a_setting_of_the_guidance_is_in_json_only_where_it_is_not_the_default():
    """So settings that were written before there was guidance are the same settings still."""
    assert list(EditSettings().to_json()) == [
        *("kind", "cross_replace_steps", "self_replace_steps", "equalizer"),
        *("blend_words", "blend_threshold", "blend_start"),
    ]
    assert EditSettings(proximal="l1", quantile=0.7).to_json() == {**EditSettings().to_json(), "proximal": "l1"}


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


def test_the_command_line_takes_several_words():
    parser = ArgumentParser()
    parser.add_class_arguments(EditSettings, "edit")
    flags = ["--edit.blend_words=[[cup, saucer], '#2']", '--edit.subtract_words=["", sofa]']
    parsed = EditSettings(**parser.parse_args([*flags, "--edit.attention=masactrl"]).edit)
    assert (parsed.blend_words, parsed.subtract_words) == ((("cup", "saucer"), "#2"), ("", "sofa"))


@pytest.mark.parametrize(
    "settings",
    [
        {"cross_replace_steps": {"default_": 0.5, "dog": 1}},
        {"equalizer": {"dog": 1}},
        {"blend_words": ("dog", "cat")},
        {"blend_words": ("tiger", ("cat", "dog"))},
        {"blend_words": ("tiger", "cat"), "subtract_words": ("", "dog")},
        {"attention": "masactrl", "masactrl_words": ("dog", "cat")},
    ],
)
def test_a_word_that_is_not_in_its_prompt_is_refused(settings: dict[str, Any]):
    name = list(settings)[-1]
    with pytest.raises(ValueError, match=f"^{name}: 'dog' does not occur in the prompt"):
        EditControl.of(tokenized("a tiger"), tokenized("a cat"), EditSettings(**settings))
