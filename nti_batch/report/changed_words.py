"""Words of a prompt that its source's caption lacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

MAX_WORDS = 500
"""Words that are compared at most; the time grows with the square of their number."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption."""

    text: str
    is_changed: bool = False
    """Whether the source's caption lacks it."""


def mark_all_changes(captions: Sequence[str]) -> list[list[Word]]:
    """The words of captions; in those behind the first, which is the source's, the changed ones are marked."""
    first, *others = captions
    return [mark_changes(first), *(mark_changes(caption, first) for caption in others)]


def mark_changes(caption: str, source: str | None = None) -> list[Word]:
    """The words of a caption.

    Args:
        caption: The caption.
        source: Caption of the source; the words that it lacks are marked, unless none is in both.
    """
    words = caption.split()
    changed = set[int]()
    if source is not None:
        old, new = source.split()[:MAX_WORDS], words[:MAX_WORDS]
        codes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if any(code == "equal" for code, *_ in codes):
            changed = {place for code, _, _, first, end in codes if code != "equal" for place in range(first, end)}
    return [Word(word, place in changed) for place, word in enumerate(words)]
