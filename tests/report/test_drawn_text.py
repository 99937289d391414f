"""Captions in drawings: escaped, wrapped, with the changed words marked."""

import numpy as np
import torch

from nti_batch.report.changed_words import mark_changes
from nti_batch.report.charts import histogram_chart
from nti_batch.report.drawn_text import MAX_LINES, DrawnWord, drawable, drawn, fitting, font, wrap
from nti_batch.report.preview import draw_rows


def marked(caption: str, source: str | None = None) -> list[DrawnWord]:
    return drawn(mark_changes(caption, source))


def test_a_character_without_a_glyph_is_escaped_and_others_stay():
    assert drawable("кошка a cat 猫\n\u202e") == "кошка a cat \\u732b\\n\\u202e"
    assert drawable("\ud800") == "\\ud800"


def test_a_chart_draws_any_label_without_a_warning_about_its_font():
    assert histogram_chart("PSNR", np.array([1.0, 2.0]), "猫", 1, "images").svg


def test_the_words_that_the_source_lacks_are_marked():
    words = marked("a tiger on a red sofa", "s/tom: a cat on a sofa")
    assert [word.text for word in words if word.is_bold] == ["tiger", "red"]
    assert not any(word.is_bold for word in marked("reconstruction", "a cat"))


def test_a_long_prompt_is_wrapped_and_no_line_is_wider_than_its_place():
    words = marked("a very long caption " * 3 + "w" * 90)
    lines = wrap(words, 200)
    assert 1 < len(lines) <= MAX_LINES
    space = font(12).getlength(" ")
    assert all(sum(word.width + space for word in line) - space <= 200 for line in lines)
    assert [word.text for line in wrap(marked("a cat"), 200) for word in line] == ["a", "cat"]
    cut = wrap(marked("word " * 500), 200)
    assert len(cut) == MAX_LINES and cut[-1][-1].text == "..."


def test_a_label_is_cut_to_its_width():
    assert font(10).getlength(fitting("a name of an edit " * 9, 10, 100)) <= 100
    assert fitting("VAE", 10, 100) == "VAE"


def test_a_changed_word_is_drawn_in_colour():
    def colours(edit: str) -> int:
        sheet = np.array(draw_rows([(["s/k: a cat", edit], torch.ones(2, 3, 64, 64), ["source", "edit"])]))
        return int((sheet[..., 0].astype(int) - sheet[..., 1] > 60).sum())

    assert colours("a cat") == 0 < colours("a dog")
