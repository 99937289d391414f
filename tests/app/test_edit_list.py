"""The page adds lines that the job reads, and never a second of one name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nti_batch import EditSettings
from nti_batch.app.edit_list import EditList
from nti_batch.editing.requests import read_requests
from nti_batch.records import EditRequest, Mask

SETTINGS = EditSettings(
    kind="replace",
    cross_replace_steps={"default_": 0.4, "blue": (0.1, 1.0)},
    self_replace_steps=(0.1, 0.5),
    equalizer={"blue": 2.0},
    blend_words=(("cup", "saucer"), "cup"),
    guidance_scale=9.0,
    proximal="l1",
)
REQUEST = EditRequest(
    shard="a", key="cup", name="", prompt=None, edit_prompt="a blue cüp", settings=SETTINGS, mask=Mask((3, 4), 8, 8)
)


def listed(path: Path) -> list[EditRequest]:
    return read_requests(path, ["a", "b"], EditSettings())


@pytest.fixture
def edits(tmp_path: Path) -> EditList:
    return EditList(tmp_path / "edits.jsonl", ["a", "b"])


def test_a_line_is_read_back_as_the_edit_that_was_shown(edits: EditList):
    line = edits.add(REQUEST)
    assert edits.path.read_text() == f"{line}\n"
    assert listed(edits.path) == [replace(REQUEST, name="0")]


def test_names_are_the_free_numbers_of_an_image(edits: EditList):
    edits.path.write_text('{"shard": "a", "key": "cup", "edit_prompt": "x"}\n{"shard": "a", "key": "cup", "name": "2"}')
    edits.add(REQUEST)
    edits.add(replace(REQUEST, edit_prompt="a green cup"))
    edits.add(replace(REQUEST, key="other"))
    edits.add(replace(REQUEST, shard="b", name="blue"))
    assert [request.name for request in listed(edits.path)] == ["0", "2", "3", "4", "0", "blue"]


def test_the_same_edit_and_the_same_name_are_refused(edits: EditList):
    edits.add(replace(REQUEST, name="blue"))
    before = edits.path.read_bytes()
    with pytest.raises(ValueError, match=r"has this edit of 'cup' already: its name is 'blue'"):
        edits.add(replace(REQUEST, name="other"))
    with pytest.raises(ValueError, match=r"has an edit 'blue' of 'cup': give another name"):
        edits.add(replace(REQUEST, name="blue", edit_prompt="a green cup"))
    assert edits.path.read_bytes() == before


def test_a_damaged_list_stays_as_it_is(edits: EditList):
    edits.path.write_text("{nonsense\n")
    with pytest.raises(ValueError, match=r"edits\.jsonl:1: this is no JSON"):
        edits.add(REQUEST)
    edits.path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"cannot be read: .*give another --edits"):
        edits.add(REQUEST)
    assert edits.path.read_bytes() == b"\xff\xfe"


def test_a_list_in_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot be written: No such file or directory; give another --edits"):
        EditList(tmp_path / "none" / "edits.jsonl", ["a"]).add(REQUEST)


@pytest.mark.parametrize("name", ["edits.csv", "."])
def test_what_cannot_be_jsonl_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="allowed: a JSONL file"):
        EditList(tmp_path / name, ["a"])


def test_a_line_says_no_more_than_the_edit(edits: EditList):
    line = edits.add(replace(REQUEST, settings=EditSettings(), mask=None))
    assert json.loads(line).keys() == {
        *("shard", "key", "name", "edit_prompt", "kind", "cross_replace_steps", "self_replace_steps", "equalizer"),
        *("blend_threshold", "blend_start"),
    }
