"""A parser of flags whose errors give the way out. It needs no torch, so that every command starts fast."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

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

LISTS = ("--data.redo", "--model.loras")
"""Flags of groups that take several words."""


class FlagParser(ArgumentParser):
    """A parser whose errors give the nearest name of an unknown flag. It takes no abbreviations."""

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """Read arguments; the flags of `LISTS` take one or more words."""
        return super().parse_args(None if args is None else _with_lists(args), *rest, **options)

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


def _with_lists(argv: Sequence[str]) -> list[str]:
    """The arguments, with the words behind a flag of `LISTS` as one list in JSON, which jsonargparse reads."""
    arguments: list[str] = []
    words: list[str] | None = None
    for argument in argv:
        flag, equals, first = argument.partition("=")
        if words is not None and not argument.startswith("-"):
            words.append(argument)
            arguments[-1] = f"{arguments[-1].partition('=')[0]}={json.dumps(words)}"
        elif flag in LISTS and equals and not first.startswith("["):
            words = [first]
            arguments.append(f"{flag}={json.dumps(words)}")
        else:
            words = [] if argument in LISTS else None
            arguments.append(argument)
    return arguments
