"""PIE-Bench's folder: its edits, and its images as a shard."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.pie_folder import EDITS, SOURCE, edited_part, scene, write_pie_folder

from nti_batch.data.samples import RawSample, read_unit
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.editing.masks import mask_pixels
from nti_batch.editing.pie_bench import (
    SpecialCases,
    category,
    has_missing_blend_word,
    read_edits,
    special_cases,
    write_shard,
)
from nti_batch.records import EditRequest, WorkUnit

FIRST, SECOND, THIRD = EDITS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pie_folder(tmp_path / "pie")


def first_edit(folder: Path) -> EditRequest:
    return read_edits(folder, "pie", EditSettings())[0]


def test_the_protocol_is_the_benchmarks(folder: Path):
    edits = read_edits(folder, "pie", EditSettings())
    assert [(e.shard, e.key, e.name) for e in edits] == [
        ("pie", FIRST, f"0-{FIRST}"),
        ("pie", SECOND, f"1-{SECOND}"),
        ("pie", THIRD, f"9-{THIRD}"),
    ]
    without_blend = EditSettings(kind="refine", cross_replace_steps=0.4, self_replace_steps=0.6)
    assert [e.settings for e in edits] == [
        replace(without_blend, blend_words=("circle", "circle"), equalizer={"circle": 2}),
        replace(without_blend, blend_words=("red", "green"), equalizer={"green": 2}),
        without_blend,
    ]
    assert [category(e.name) for e in edits] == ["random", "change object", "change style"]


def test_prompts_have_no_brackets(folder: Path):
    edits = read_edits(folder, "pie", EditSettings())
    assert [e.prompt for e in edits] == [SOURCE.caption] * 3
    assert [e.edit_prompt for e in edits] == [scene(colour).caption for _, colour, _ in EDITS.values()]


def test_a_mask_has_its_runs_and_the_four_borders(folder: Path):
    expected = edited_part()
    expected[0], expected[-1], expected[:, 0], expected[:, -1] = True, True, True, True
    mask = first_edit(folder).mask
    assert mask is not None and torch.equal(mask_pixels(mask, 512, 512), expected)


BORDERS = 4 * 511


@pytest.mark.parametrize(
    ("runs", "pixels"),
    [
        ([512 * 512 - 600, 700], 87),  # 600 pixels to the end, of which the last row and its neighbour are borders
        ([512 * 512, 5], 0),
        ([512 * 512 + 7, 5], 0),
        ([512 * 512 + 7, 5, 1000, 3], 3),
        ([1000, 3, 10**30, 10**30], 3),
        ([1000, -3], 0),
        ([], 0),
    ],
)
def test_what_runs_have_past_the_end_is_left_out_as_the_benchmark_does(tmp_path: Path, runs: list[int], pixels: int):
    mask = first_edit(write_pie_folder(tmp_path / "pie", mask=runs)).mask
    assert mask is not None and mask_pixels(mask, 512, 512).sum() == BORDERS + pixels


def test_other_settings_are_the_users(folder: Path):
    given = EditSettings(cross_replace_steps=0.8, equalizer={"large": 3.0}, guidance_scale=15, proximal="l1")
    settings = read_edits(folder, "pie", given)[0].settings
    assert (settings.guidance_scale, settings.proximal) == (15, "l1")
    assert (settings.cross_replace_steps, settings.equalizer) == (0.8, {"large": 3.0, "circle": 2.0})


@pytest.mark.parametrize("words", ["", " ", "circle"])
def test_an_edit_without_two_words_does_not_blend(tmp_path: Path, words: str):
    edit = first_edit(write_pie_folder(tmp_path / "pie", blended_word=words))
    assert edit.settings == EditSettings() and not has_missing_blend_word(edit)


@pytest.mark.parametrize(
    ("words", "found", "weights"),
    [
        ("square circle", ("", "circle"), {"circle": 2.0}),
        ("circ circle", ("", "circle"), {"circle": 2.0}),
        (" circle", ("", "circle"), {"circle": 2.0}),
        ("circle square", ("circle", ""), {}),
        ("circle ", ("circle", ""), {}),
        ("circle  circle", ("circle", ""), {}),
        ("square square", ("", ""), {}),
        ("circle circle square", ("circle", "circle"), {"circle": 2.0}),
    ],
)
def test_a_word_that_is_not_in_its_prompt_selects_nothing_and_the_other_one_stays(
    tmp_path: Path, words: str, found: tuple[str, str], weights: dict[str, float]
):
    edit = first_edit(write_pie_folder(tmp_path / "pie", blended_word=words))
    assert edit.settings == EditSettings(blend_words=found, equalizer=weights)
    assert has_missing_blend_word(edit) == ("" in found)


def test_a_word_is_found_in_any_case_and_beside_punctuation(tmp_path: Path):
    folder = write_pie_folder(
        tmp_path / "pie", original_prompt="a Dog, running", editing_prompt="a [cat], running", blended_word="dog cat"
    )
    assert first_edit(folder).settings.blend_words == ("dog", "cat")


def test_the_shard_holds_the_images_unchanged_and_the_source_prompts(folder: Path, tmp_path: Path):
    tar = tmp_path / "pie.tar"
    assert write_shard(folder, tar) == 3
    samples = list(read_unit(WorkUnit("pie", str(tar), 0, 1), "txt"))
    assert all(isinstance(sample, RawSample) for sample in samples)
    read = {s.key: (s.image, s.prompt) for s in samples if isinstance(s, RawSample)}
    assert read == {
        key: ((folder / f"annotation_images/{kind}_category/{key}.jpg").read_bytes(), SOURCE.caption)
        for key, (kind, _, _) in EDITS.items()
    }


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({}, {}),
        ({"original_prompt": "a circle", "editing_prompt": "a [blue] circle"}, {}),
        ({"original_prompt": "a circle", "editing_prompt": "a blue circle"}, {"brackets": 2}),
        ({"mask": []}, {"empty_masks": 1}),
        ({"mask": [512 * 512, 7, 3, 0]}, {"empty_masks": 1}),
        ({"mask": [0, 512 * 512]}, {"full_masks": 1}),
        ({"mask": [513, 512 * 511 - 2]}, {"full_masks": 1}),
        ({"blended_word": "circle"}, {"no_blend_words": 2}),
        ({"blended_word": "circle square"}, {"missing_blend_words": 1}),
        ({"blended_word": "square square"}, {"missing_blend_words": 1}),
    ],
)
def test_edits_that_the_benchmark_treats_in_its_own_way_are_counted(
    tmp_path: Path, change: dict[str, object], counts: dict[str, int]
):
    usual = SpecialCases(edits=3, brackets=3, empty_masks=0, full_masks=0, no_blend_words=1, missing_blend_words=0)
    assert special_cases(write_pie_folder(tmp_path / "pie", **change)) == replace(usual, **counts)


def test_a_missing_image_is_named_and_leaves_no_shard(folder: Path, tmp_path: Path):
    (folder / f"annotation_images/1_category/{SECOND}.jpg").unlink()
    with pytest.raises(ValueError, match=rf"image of '{SECOND}' cannot be read: .*{SECOND}\.jpg"):
        write_shard(folder, tmp_path / "pie.tar")
    assert not (tmp_path / "pie.tar").exists()


def test_a_missing_mapping_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"mapping_file\.json cannot be read"):
        read_edits(tmp_path, "pie", EditSettings())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"000000000000": {', r"mapping_file\.json is no JSON file"),
        ("\xff", r"mapping_file\.json is no JSON file"),
        ("[]", r"mapping_file\.json is of type list, allowed: an object"),
        ("{}", r"mapping_file\.json has no entries"),
        (json.dumps({FIRST: 3}), rf"mapping_file\.json, entry '{FIRST}' is of type int"),
    ],
)
def test_a_damaged_mapping_file_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "mapping_file.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_edits(tmp_path, "pie", EditSettings())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"editing_prompt": None, "blended_word": 3}, "lacks a text for 'blended_word', 'editing_prompt'"),
        ({"editing_type_id": "10"}, "'editing_type_id' is '10', allowed: '0' to '9'"),
        ({"mask": "0 1"}, "'mask' is no list of whole numbers"),
        ({"mask": [0.5, 1]}, "'mask' is no list of whole numbers"),
        ({"mask": [0, 1, 2]}, "runs are 3 numbers"),
        ({"mask": [-5, 1]}, "a run of 1 pixels from -5"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path: Path, change: dict[str, object], message: str):
    with pytest.raises(ValueError, match=f"entry '{FIRST}'.* {message}"):
        first_edit(write_pie_folder(tmp_path / "pie", **change))
