"""Phrases that messages of several packages share."""

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

NEAR = 0.6
"""Least likeness of two names of which one is taken for the other, mistyped."""

SECTION = 0.1
"""Share of a flag's section in the likeness."""

_BEHIND_SCHEME = re.compile(r"(?<=\w)://[^\s'\"<>]+")
_USER = re.compile(
    r"^([^/?#:]*:/*)"  # the scheme
    r"(?:[^/?#]*@"
    # what follows a colon is a port, or belongs to a password in which '/', '?' or '#' are not written as %XX
    r"|[^/?#@:]*:(?!\d*(?:[/?#]|$)).*@)",
    re.DOTALL,
)


def without_credentials(url: str) -> str:
    """Return a url without user, password, query and fragment, any of which may be a secret."""
    return re.split("[?#]", _USER.sub(r"\1", url), maxsplit=1)[0]


def hide_credentials(text: str) -> str:
    """Remove what `without_credentials` removes from each url in a text."""
    return _BEHIND_SCHEME.sub(lambda url: without_credentials(url[0]), text)


def is_unicode(text: str) -> bool:
    """Whether a text is Unicode: JSON can spell half a surrogate pair, and a shell pass bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(name: str, text: str) -> None:
    """Raise a ValueError, with the name of what has the text, if it is empty or no Unicode."""
    if not text.strip():
        raise ValueError(f"{name} is empty: give a text, or leave it out")
    if not is_unicode(text):
        raise ValueError(f"{name} is {text!r}, allowed: texts in Unicode")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End of a message about an unknown name, such as "; did you mean '--model.num_steps'?"; empty if none is near.

    Args:
        word: The unknown name. A flag may have another section than its own, or none.
        known: The names that exist.
    """
    likeness, name = max(((_likeness(word, name), name) for name in known), default=(0.0, ""))
    return f"; did you mean {name!r}?" if likeness > NEAR else ""


def _likeness(word: str, name: str) -> float:
    """How much two names are alike, up to 1; the section of a flag counts little."""
    if not name.startswith("--"):
        return SequenceMatcher(None, word.lower(), name).ratio()
    (section, _, last), (other, _, known) = (
        text.lower().lstrip("-").replace("-", "_").rpartition(".") for text in (word, name)
    )
    return (1 - SECTION) * SequenceMatcher(None, last, known).ratio() + SECTION * (section == other)


def and_more(items: Sequence[str], limit: int) -> str:
    """Join the first items, and say how many others there are.

    Args:
        items: Parts of a message.
        limit: The largest number of items to join.

    Returns:
        For example "first; second; and 3 more".
    """
    others = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return "; ".join([*items[:limit], *others])


def format_duration(seconds: float) -> str:
    """A length of time in the largest unit that it fills, such as '12 min' or '1.5 h'."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{round(seconds / 86400, 1):g} days"
