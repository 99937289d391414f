"""Aligns the tokens of an edit's prompt with the tokens of the source's.

Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", 2022, https://arxiv.org/abs/2208.01626,
section 4. Prompts are aligned word by word, since a word may have several tokens; an alignment is a matrix A,
[source tokens, edit tokens], with which a source's attention map M, [..., source tokens], becomes M A.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["replace", "refine"]
_NUMBER = re.compile("#([0-9]{1,3})")
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]+")
_JOINERS = "\u200c\u200d"
"""Zero-width characters that shape the letters, or the emoji, on both sides."""


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """The words of a prompt and the positions of their tokens.

    Position 0 holds the start token, `end` the end token; padding follows.
    """

    prompt: str
    words: tuple[str, ...]
    """Words in lower case and composed (NFC), as CLIP reads them; a run of punctuation marks is a word of its own."""

    spans: tuple[tuple[int, ...], ...]
    """Positions of each word's tokens; none for a word behind the last token that the text encoder reads."""

    end: int
    length: int
    """Number of tokens of the padded prompt."""

    @classmethod
    def of(cls, prompt: str, offsets: Sequence[tuple[int, int]]) -> "TokenizedPrompt":
        """Find the words.

        Args:
            prompt: The text.
            offsets: First character of each token and the one after its last; (0, 0) for start, end and padding.
        """
        tokens = [(i, first) for i, (first, last) in enumerate(offsets) if first < last]
        return cls(
            prompt=prompt,
            words=_split(prompt),
            spans=tuple(tuple(i for i, first in tokens if start <= first < end) for start, end in _find_words(prompt)),
            end=len(tokens) + 1,
            length=len(offsets),
        )

    def find(self, phrase: str) -> list[int]:
        """Positions of the tokens of a word, or of several in a row, wherever they occur.

        `#0`, `#1`, ... is what stands between two spaces, by its number, unless the prompt has such a word.

        Raises:
            ValueError: If they do not occur.
        """
        positions = [position for place in self._places(phrase) for span in self.spans[place] for position in span]
        if positions:
            return positions
        if self.has(phrase):
            raise ValueError(
                f"{phrase!r} is behind what the text encoder reads of the prompt {self.prompt!r}: shorten the prompt"
            )
        raise ValueError(f"{phrase!r} does not occur in the prompt {self.prompt!r}, allowed: its words")

    def has(self, phrase: str) -> bool:
        """Whether a word, or several in a row, occur, whether or not the text encoder reads them."""
        return bool(self._places(phrase))

    def _places(self, phrase: str) -> list[slice]:
        wanted = _split(phrase)
        places = (slice(i, i + len(wanted)) for i in range(len(self.words)) if wanted)
        return [place for place in places if self.words[place] == wanted] or self._numbered_places(phrase)

    def _numbered_places(self, phrase: str) -> list[slice]:
        number, parts = _NUMBER.fullmatch(phrase), list(re.finditer(r"\S+", self.prompt))
        if not number or int(number[1]) >= len(parts):
            return []
        start, end = parts[int(number[1])].span()
        return [slice(i, i + 1) for i, (first, _) in enumerate(_find_words(self.prompt)) if start <= first < end]


def compose(text: str) -> str:
    """Text with one character for each letter and its accents (Unicode's NFC)."""
    return unicodedata.normalize("NFC", text)


def _split(text: str) -> tuple[str, ...]:
    """The words of a text, as CLIP reads them."""
    return tuple(_as_read(text[start:end]) for start, end in _find_words(text))


def _as_read(word: str) -> str:
    """A word as CLIP reads it. Lower case may decompose a letter again."""
    return compose(compose(word).lower())


def _find_words(text: str) -> list[tuple[int, int]]:
    """First character of each word, and the one after its last; a combining mark belongs to what it marks."""
    bases: list[str] = []
    for character in text:
        is_part = character in _JOINERS or unicodedata.category(character).startswith("M")
        bases.append(bases[-1] if is_part and bases and not bases[-1].isspace() else character)
    return [word.span() for word in _WORD.finditer("".join(bases))]


def align(source: TokenizedPrompt, edit: TokenizedPrompt, kind: Kind) -> Tensor:
    """The alignment A of two prompts of one padded length; the column of a token that is new is zero.

    A word's tokens stand for its partner's one by one. Where the partner has another number of tokens, each takes an
    even share of all of them. Start and end token stand for the same tokens of the source.

    Padding stands for the source's padding. `refine` pairs the padding of one position, since the embedding of padding
    depends on its position. Where the source's prompt is longer, and in `replace`, padding is paired by its distance
    from the end token.

    Args:
        source: The source's prompt.
        edit: The edit's prompt.
        kind: `replace` pairs the first word with the first, the second with the second, ...; `refine` pairs the words
            that both prompts have, in their order.

    Raises:
        ValueError: If the kind is `replace` and the prompts have different numbers of words.
    """
    alignment = torch.zeros(source.length, edit.length)
    alignment[0, 0] = 1
    for i, j in _pairs(source, edit, kind):
        _stand_for(alignment, source.spans[i], edit.spans[j])
    alignment[source.end, edit.end] = 1
    for j in range(edit.end + 1, edit.length):
        i = j if kind == "refine" and j > source.end else source.end + j - edit.end
        if i < source.length:
            alignment[i, j] = 1
    return alignment


def _stand_for(alignment: Tensor, source: Sequence[int], edit: Sequence[int]) -> None:
    """Give the tokens of one word the attention of another's."""
    if len(source) == len(edit):
        alignment[list(source), list(edit)] = 1
    elif edit:
        alignment[[[i] for i in source], list(edit)] = 1 / len(edit)


def _pairs(source: TokenizedPrompt, edit: TokenizedPrompt, kind: Kind) -> Iterable[tuple[int, int]]:
    """Positions of the words that are paired, in both prompts."""
    if kind == "refine":
        blocks = SequenceMatcher(None, source.words, edit.words, autojunk=False).get_matching_blocks()
        return [(i + k, j + k) for i, j, size in blocks for k in range(size)]
    if len(source.words) != len(edit.words):
        raise ValueError(
            f"to replace words, an edit needs as many as its source: {edit.prompt!r} has {len(edit.words)}, "
            f"{source.prompt!r} has {len(source.words)}; 'refine' takes any number"
        )
    return zip(range(len(source.words)), range(len(edit.words)), strict=True)
