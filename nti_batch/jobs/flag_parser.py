"""A parser of flags whose errors give the way out. It needs no torch, so that every command starts fast."""

import re
from collections.abc import Iterable
from typing import NoReturn

from jsonargparse import ArgumentParser

from nti_batch.phrases import did_you_mean

_UNKNOWN = (
    re.compile(r"unrecognized arguments: (--?[\w.-]+)"),
    re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'"),
    re.compile(r"(?:Key|option) '([\w.]+)' is not expected"),
)
_NO_FLAG = re.compile(r"unrecognized arguments: [^-]")
_NO_FILE_OF_A_SECTION = re.compile(r'Parser key "(\w+)": Unable to load config')
"""jsonargparse's messages about unknown flags and keys."""


class FlagParser(ArgumentParser):
    """A parser whose errors give the nearest name of an unknown flag. It takes no abbreviations."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report an error."""
        hint = _hint(message, self._option_string_actions)
        super().error(message if message.endswith(hint) else f"{message}{hint}", ex)


def _hint(message: str, known: Iterable[str]) -> str:
    """End of a parser's message about an unknown flag or key; empty for other messages."""
    for pattern in _UNKNOWN:
        if found := pattern.search(message):
            return did_you_mean(f"--{'.'.join(found.groups()).lstrip('-')}", known)
    if found := _NO_FILE_OF_A_SECTION.search(message):
        flags = [name for name in known if name.startswith(f"--{found[1]}.")]
        return f"; it is a file with the flags {', '.join(flags)}" if flags else ""
    return "; each argument is a flag, and --help lists the flags" if _NO_FLAG.search(message) else ""
