"""Lists of edits in CSV and JSONL give the same requests, and invalid lines are refused."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import pytest

from nti_batch import EditSettings
from nti_batch.editing.columns import SETTINGS_COLUMNS
from nti_batch.editing.requests import read_requests
from nti_batch.json_object import Json


def test_every_setting_of_an_edit_is_a_column_of_its_list():
    assert list(SETTINGS_COLUMNS) == [field.name for field in dataclasses.fields(EditSettings)]


def test_csv_and_jsonl_give_equal_requests(tmp_path: Path):
    edits: list[dict[str, Json]] = [
        {"key": "a,b", "edit_prompt": 'a "blue" circle', "prompt": "a red circle", "kind": "replace"},
        {
            "key": "a,b",
            "name": "x",
            "cross_replace_steps": 0.5,
            "self_replace_steps": [0.0, 0.5],
            "equalizer": {"blue": 2, "a b": -1},
        },
        {
            "key": "c",
            "cross_replace_steps": {"default_": 0.9, "blue": 0.25},
            "blend_words": ["red", "blue sky"],
            "blend_threshold": 0.5,
        },
        {"key": "d", "mask": [3, 4], "mask_size": [8, 16], "blend_start": 0.1},
        {"key": "e", "cross_replace_steps": [0.1, 0.5], "self_replace_steps": 0},
        {"key": "f", "cross_replace_steps": {"default_": [0.1, 0.5], "blue sky": 1}},
        {
            "key": "g",
            "attention": "masactrl",
            "masactrl_steps": [0.1, 1],
            "masactrl_layers": [0.5, 1],
            "masactrl_words": ["red", ["blue", "#2"]],
            "blend_words": [["red", "sky"], "blue"],
            "subtract_words": ["", "sea"],
            "subtract_threshold": 0.2,
        },
        {"key": "h", "attention": "plug-and-play", "pnp_feature_steps": 0.7, "pnp_attention_steps": [0.1, 0.5]},
        {"key": "i", "guidance_scale": 15, "skip_steps": 0.36, "proximal": "l0", "quantile": 0.6},
        {"key": "j", "recon_lr": 1, "recon_start": 0.5, "dilate_mask": 2},
    ]
    cells = [
        {"key": "a,b", "edit_prompt": 'a "blue" circle', "prompt": "a red circle", "kind": "replace"},
        {
            "key": "a,b",
            "name": "x",
            "cross_replace_steps": "0.5",
            "self_replace_steps": "0;0.5",
            "equalizer": "blue=2;a b=-1",
        },
        {
            "key": "c",
            "cross_replace_steps": "default_=0.9;blue=0.25",
            "blend_words": "red;blue sky",
            "blend_threshold": "0.5",
        },
        {"key": "d", "mask": "[3, 4]", "mask_size": "[8, 16]", "blend_start": "0.1"},
        {"key": "e", "cross_replace_steps": "0.1;0.5", "self_replace_steps": "0"},
        {"key": "f", "cross_replace_steps": '{"default_": [0.1, 0.5], "blue sky": 1}'},
        {
            "key": "g",
            "attention": "masactrl",
            "masactrl_steps": "0.1;1",
            "masactrl_layers": "0.5;1",
            "masactrl_words": '["red", ["blue", "#2"]]',
            "blend_words": '[["red", "sky"], "blue"]',
            "subtract_words": ";sea",
            "subtract_threshold": "0.2",
        },
        {"key": "h", "attention": "plug-and-play", "pnp_feature_steps": "0.7", "pnp_attention_steps": "0.1;0.5"},
        {"key": "i", "guidance_scale": "15", "skip_steps": "0.36", "proximal": "l0", "quantile": "0.6"},
        {"key": "j", "recon_lr": "1", "recon_start": "0.5", "dilate_mask": "2"},
    ]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, edits)))
    with open(tmp_path / "e.csv", "w", newline="") as file:
        table = csv.DictWriter(file, sorted({name for row in cells for name in row}))
        table.writeheader()
        table.writerows(cells)
    defaults = EditSettings(cross_replace_steps=0.9)
    requests = read_requests(tmp_path / "e.jsonl", ["s"], defaults)
    assert requests == read_requests(tmp_path / "e.csv", ["s"], defaults)
    assert [request.name for request in requests] == ["0", "x", *["0"] * 8]
    assert [request.settings.cross_replace_steps for request in requests[:6]] == [
        0.9,
        0.5,
        {"default_": 0.9, "blue": 0.25},
        0.9,
        (0.1, 0.5),
        {"default_": (0.1, 0.5), "blue sky": 1.0},
    ]
    assert requests[1].settings.equalizer == {"blue": 2.0, "a b": -1.0}
    assert requests[2].settings.blend_words == ("red", "blue sky")
    assert requests[6].settings.blend_words == (("red", "sky"), "blue")
    assert requests[6].settings.masactrl_words == ("red", ("blue", "#2"))
    assert requests[7].settings.attention == "plug-and-play"
    guided, corrected = requests[8].settings, requests[9].settings
    assert (guided.guidance_scale, guided.skip_steps, guided.proximal, guided.quantile) == (15.0, 0.36, "l0", 0.6)
    assert (corrected.recon_lr, corrected.recon_start, corrected.dilate_mask) == (1.0, 0.5, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("key,promt\n000,\n", "e.csv:2: there is no column 'promt'"),
        ("key,prompt\n000\n", "e.csv:2: the line does not have the 2 columns of the first"),
        ("key,prompt\n000,a,b\n", "e.csv:2: the line does not have the 2 columns of the first"),
        (
            "key,self_replace_steps\n000,0.1;0.2;1\n",
            "e.csv:2: self_replace_steps is '0.1;0.2;1', allowed: a number such",
        ),
        ("key,self_replace_steps\n000,[]\n", "e.csv:2: self_replace_steps is '[]', allowed: a number such"),
        (
            "key,cross_replace_steps\n000,default_=0.1;0.5;a=1\n",
            "e.csv:2: cross_replace_steps is 'default_=0.1;0.5;a=1'",
        ),
        ("key,masactrl_layers\n000,0.5\n", "e.csv:2: masactrl_layers is '0.5', allowed: a range [0.6, 1] or 0.6;1"),
        ("key,blend_words\n000,[1;2]\n", "e.csv:2: blend_words is '[1;2]', allowed: a word of the source's prompt"),
        ("key,attention\n000,masa\n", "e.csv:2: attention is 'masa', allowed: 'prompt-to-prompt' or"),
        ("key,subtract_words\n000,a;b\n", "e.csv:2: subtract_words is ['a', 'b'], allowed: null, or together with"),
        ("key,equalizer\n000,blue\n", "e.csv:2: equalizer is 'blue', allowed: words with a number each"),
        ("key,proximal\n000,l2\n", "e.csv:2: proximal is 'l2', allowed: 'l0' or 'l1'"),
        ("key,guidance_scale\n000,0.5\n", "e.csv:2: guidance_scale is 0.5, allowed: at least 1"),
        ("key,dilate_mask\n000,1.5\n", "e.csv:2: dilate_mask is '1.5', allowed: a whole number"),
        ("key,equalizer\n000,a=1;a=2\n", "e.csv:2: equalizer is 'a=1;a=2', allowed: words with a number each"),
        (f"key,guidance_scale\n000,{'[' * 10**5}\n", "e.csv:2: guidance_scale is '[[[[[[[[[["),
        (f"key,mask\n000,{'[' * 10**5}\n", "e.csv:2: mask is '[[[[[[[[[["),
        ("key,name,key\n000,a,001\n", "cannot be read: the column 'key' occurs more than once"),
    ],
)
def test_an_invalid_line_of_a_csv_is_refused_with_its_number(tmp_path: Path, text: str, reason: str):
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_requests(tmp_path / "e.csv", ["s"], EditSettings())


def test_a_number_that_no_float_can_hold_is_refused_with_its_line(tmp_path: Path):
    (tmp_path / "e.jsonl").write_text('{"key": "a"}\n{"key": "b", "guidance_scale": 1' + "0" * 400 + "}")
    with pytest.raises(ValueError, match=r"e\.jsonl:2: guidance_scale is 10+\.\.\., allowed: a number"):
        read_requests(tmp_path / "e.jsonl", ["s"], EditSettings())


def test_a_cell_of_a_csv_may_be_written_as_in_json(tmp_path: Path):
    (tmp_path / "e.csv").write_text('key,equalizer\na,"{""blue"": 2, ""a;b"": 3}"\n')
    (request,) = read_requests(tmp_path / "e.csv", ["s"], EditSettings())
    assert request.settings.equalizer == {"blue": 2.0, "a;b": 3.0}


def test_a_unicode_line_separator_does_not_end_a_line_of_jsonl(tmp_path: Path):
    (tmp_path / "e.jsonl").write_text('{"key": "a", "edit_prompt": "one\u2028two"}\n\n{"key": "b"}')
    requests = read_requests(tmp_path / "e.jsonl", ["s"], EditSettings())
    assert [request.edit_prompt for request in requests] == ["one\u2028two", None]
