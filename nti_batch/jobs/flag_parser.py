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

_WRONG_TYPE = re.compile(
    r'Parser key "(?P<flag>[\w.]+)":\s+(?:Expected|Does not validate against any of the Union subtypes)\s+'
    r"(?P<types>.*?)(?:\s+Errors:.*Given value:|\. Got value:)\s+(?P<value>.*)",
    re.DOTALL,
)
_TYPE = re.compile(
    r"Literal\[(?P<choices>.*?)\]|<class '(?:[\w.]+\.)?(?P<name>\w+)'>|(?P<other>tuple|list|Mapping|dict)\b"
)
"""jsonargparse's message about a value of another type, and a type in it."""

_ALLOWED = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "tuple": "a list such as [a, b]",
    "list": "a list such as [a, b]",
    "Mapping": "names with values, such as {word: 2}",
    "dict": "names with values, such as {word: 2}",
}

LISTS = ("--data.redo", "--model.loras")
"""Flags of groups that take several words."""


class FlagParser(ArgumentParser):
    """A parser whose errors give the nearest name of an unknown flag. It takes no abbreviations."""

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """Read arguments; the flags of `LISTS` take one or more words."""
        return super().parse_args(None if args is None else _with_lists(args), *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report an error."""
        message = _in_words(message)
        hint = _hint(message, self._option_string_actions)
        super().error(message if message.endswith(hint) else f"{message}{hint}", ex)


def _in_words(message: str) -> str:
    """A message about a value of another type, without Python's names of types; other messages as they are."""
    found = _WRONG_TYPE.search(message)
    if found is None:
        return message
    allowed = dict.fromkeys(map(_type_in_words, _TYPE.finditer(found["types"])))
    return f"--{found['flag']} is {found['value'].strip()}, allowed: {' or '.join(allowed)}" if allowed else message


def _type_in_words(found: re.Match[str]) -> str:
    if choices := found["choices"]:
        return choices.replace(", ", " or ")
    name = found["name"] or found["other"]
    return _ALLOWED.get(name, name)


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
