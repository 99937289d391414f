"""The fields of the page are read as the cells of a list of edits."""

import pytest

from nti_batch import EditSettings
from nti_batch.app.form import FIELDS, FURTHER, EditForm
from nti_batch.editing.columns import SETTINGS_COLUMNS


def test_empty_fields_are_the_defaults():
    assert EditForm("a cup").settings() == EditSettings()


def test_every_setting_has_a_field_or_a_line():
    assert sorted([*FIELDS, *FURTHER]) == sorted(SETTINGS_COLUMNS)


def test_the_fields_are_read_as_cells():
    form = EditForm(
        prompt="a big blue cup",
        attention="prompt-to-prompt",
        kind="replace",
        cross_replace_steps=" default_=0.4;blue=1 ",
        self_replace_steps="0.1;0.5",
        source_blend_words="cup; saucer",
        edit_blend_words="cup",
        equalizer="blue=2;big=0.5",
        further="blend_threshold = 0.5\n\nsubtract_words=table;table\n",
    )
    assert form.settings() == EditSettings(
        kind="replace",
        cross_replace_steps={"default_": 0.4, "blue": 1.0},
        self_replace_steps=(0.1, 0.5),
        blend_words=(("cup", "saucer"), "cup"),
        equalizer={"blue": 2.0, "big": 0.5},
        blend_threshold=0.5,
        subtract_words=("table", "table"),
    )


def test_one_blend_word_is_enough():
    assert EditForm("a cup", edit_blend_words="cup").settings().blend_words == ("", "cup")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cross_replace_steps": "much"}, "cross_replace_steps is 'much', allowed: a number"),
        ({"self_replace_steps": "1.5"}, "self_replace_steps is 1.5, allowed: 0 to 1"),
        ({"equalizer": "blue"}, "equalizer is 'blue', allowed: words with a number each"),
        ({"attention": "magic"}, "attention is 'magic', allowed: "),
        ({"further": "blend_treshold = 0.3"}, "further settings: 'blend_treshold = 0.3', allowed: lines"),
        ({"further": "blend_threshold"}, "further settings: 'blend_threshold', allowed: lines"),
        ({"further": "kind = replace"}, "further settings: 'kind = replace'"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(fields: dict[str, str], message: str):
    with pytest.raises(ValueError) as error:
        EditForm("a cup", **fields).settings()
    assert message in str(error.value)
