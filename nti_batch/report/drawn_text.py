"""Text in drawings: escaped where the font lacks a character, wrapped, with the changed words marked.

The font is DejaVu Sans, which comes with matplotlib and has the letters of European languages, Arabic and Hebrew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

from nti_batch.report.changed_words import Word

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
INK, MARK = "black", "#b4372f"

MAX_LINES = 4
"""Lines of a caption that are drawn at most."""

MAX_CAPTION = 2_000
"""Characters of a caption that are drawn at most; a file may hold a million."""


@dataclass(frozen=True, slots=True)
class DrawnWord:
    """A word as it is drawn."""

    text: str
    is_bold: bool = False

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        """The font in which it is drawn."""
        return font(12, self.is_bold)

    @property
    def width(self) -> float:
        """Its width in pixels."""
        return self.font.getlength(self.text)


@cache
def font(size: int, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of the drawings."""
    return ImageFont.truetype(FONTS / f"DejaVuSans{'-Bold' if is_bold else ''}.ttf", size)


@cache
def _glyphs() -> frozenset[int]:
    """The characters that both fonts have."""
    regular, bold = (FT2Font(str(FONTS / f"DejaVuSans{kind}.ttf")).get_charmap() for kind in ("", "-Bold"))
    return frozenset(regular) & frozenset(bold)


def drawable(text: str) -> str:
    r"""Escape each character that the font lacks or that is not printable, such as `\u732b`."""
    return "".join(c if c.isprintable() and ord(c) in _glyphs() else c.encode("unicode_escape").decode() for c in text)


def drawn(words: Sequence[Word]) -> list[DrawnWord]:
    """Words as they are drawn: changed ones are bold."""
    return [DrawnWord(drawable(word.text), word.is_changed) for word in words]


def wrap(words: Sequence[DrawnWord], width: float) -> list[list[DrawnWord]]:
    """Divide words into at most `MAX_LINES` lines of a width in pixels; an ellipsis stands for what is cut off."""
    space, lines = font(12).getlength(" "), list[list[DrawnWord]]([[]])
    for word in (piece for each in words for piece in _pieces(each, width)):
        if lines[-1] and sum(w.width + space for w in lines[-1]) + word.width > width:
            lines.append([])
        lines[-1].append(word)
        if len(lines) > MAX_LINES:
            last = lines[MAX_LINES - 1]
            while last and sum(w.width + space for w in last) + font(12).getlength("...") > width:
                last.pop()
            return [*lines[: MAX_LINES - 1], [*last, DrawnWord("...")]]
    return lines


def _pieces(word: DrawnWord, width: float) -> Iterator[DrawnWord]:
    """A word in pieces that are no wider than a line."""
    text = word.text
    while text:
        count = len(text)
        while count > 1 and word.font.getlength(text[:count]) > width:
            count = max(1, min(count - 1, int(count * width / word.font.getlength(text[:count]))))
        yield DrawnWord(text[:count], word.is_bold)
        text = text[count:]


def draw_line(pen: ImageDraw.ImageDraw, place: tuple[float, float], words: Sequence[DrawnWord]) -> None:
    """Draw a line of words; changed ones are bold and coloured."""
    left, top = place
    for word in words:
        pen.text((left, top), word.text, MARK if word.is_bold else INK, word.font)
        left += word.width + font(12).getlength(" ")


def fitting(text: str, size: int, width: float) -> str:
    """A text on one line, cut to a width in pixels."""
    text = drawable(" ".join(text[:MAX_CAPTION].split()))
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
