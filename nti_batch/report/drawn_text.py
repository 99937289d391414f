"""Text in drawings: escaped where the font lacks a character, wrapped, with the changed words marked.

The font is DejaVu Sans, which comes with matplotlib and has the letters of European languages, Arabic and Hebrew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
INK, MARK = "black", "#b4372f"

MAX_LINES = 4
"""Lines of a caption that are drawn at most."""

MAX_CAPTION = 2_000
"""Characters of a caption that are drawn at most; a file may hold a million."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption."""

    text: str
    is_changed: bool = False
    """Whether the source's caption lacks it."""

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        """The font in which it is drawn."""
        return font(12, self.is_changed)

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


def words_of(caption: str, source: str | None = None) -> list[Word]:
    """The words of a caption as they are drawn.

    Args:
        caption: The caption.
        source: Caption of the source; the words that it lacks are marked, unless none is in both.
    """
    words = caption[:MAX_CAPTION].split()
    changed = set[int]()
    if source is not None:
        codes = SequenceMatcher(None, source[:MAX_CAPTION].split(), words, autojunk=False).get_opcodes()
        if any(code == "equal" for code, *_ in codes):
            changed = {place for code, _, _, first, end in codes if code != "equal" for place in range(first, end)}
    return [Word(drawable(word), place in changed) for place, word in enumerate(words)]


def wrap(words: Sequence[Word], width: float) -> list[list[Word]]:
    """Divide words into at most `MAX_LINES` lines of a width in pixels; an ellipsis stands for what is cut off."""
    space, lines = font(12).getlength(" "), list[list[Word]]([[]])
    for word in (piece for each in words for piece in _pieces(each, width)):
        if lines[-1] and sum(w.width + space for w in lines[-1]) + word.width > width:
            lines.append([])
        lines[-1].append(word)
        if len(lines) > MAX_LINES:
            last = lines[MAX_LINES - 1]
            while last and sum(w.width + space for w in last) + font(12).getlength("...") > width:
                last.pop()
            return [*lines[: MAX_LINES - 1], [*last, Word("...")]]
    return lines


def _pieces(word: Word, width: float) -> Iterator[Word]:
    """A word in pieces that are no wider than a line."""
    text = word.text
    while text:
        count = len(text)
        while count > 1 and word.font.getlength(text[:count]) > width:
            count = max(1, min(count - 1, int(count * width / word.font.getlength(text[:count]))))
        yield Word(text[:count], word.is_changed)
        text = text[count:]


def draw_line(pen: ImageDraw.ImageDraw, place: tuple[float, float], words: Sequence[Word]) -> None:
    """Draw a line of words; changed ones are bold and coloured."""
    left, top = place
    for word in words:
        pen.text((left, top), word.text, MARK if word.is_changed else INK, word.font)
        left += word.width + font(12).getlength(" ")


def fitting(text: str, size: int, width: float) -> str:
    """A text on one line, cut to a width in pixels."""
    text = drawable(" ".join(text[:MAX_CAPTION].split()))
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
