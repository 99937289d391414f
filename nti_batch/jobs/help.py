"""Help of the jobs: the flags that a user sets, by section, a sentence each; `--help_all` has the Trainer's others."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from jsonargparse import ArgumentParser

INDENT = " " * 8
"""Margin of the later lines of a flag."""

WIDTHS = 78, 118
"""Least and largest number of columns."""

LONG = 80
"""Characters of a sentence that is cut at its semicolon."""

HARDWARE: Mapping[str, str] = {
    "trainer.accelerator": "Kind of device: 'cpu', 'gpu', 'mps' or 'auto'.",
    "trainer.devices": "Number of devices of a node, or 'auto' for all.",
    "trainer.num_nodes": "Number of nodes.",
    "trainer.strategy": "How the ranks start, such as 'ddp'.",
    "trainer.logger": "Lightning's logger, such as 'CSVLogger'.",
}
"""The Trainer's flags that a user of a job sets."""

Needed = Sequence[Sequence[str]]
"""Flags without which a job cannot start; of each group one is enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HelpText:
    """What the help of a job says beside its flags."""

    description: str
    needed: Needed
    example: str
    """A command line that runs."""

    ending: str = ""
    """Lines behind the flags."""


def missing_flags(text: HelpText, given: Mapping[str, Any]) -> str:
    """The message that names the needed flags of which none is given; empty if there are all."""
    missing = [" or ".join(_flags(group)) for group in text.needed if not any(given.get(name) for name in group)]
    if not missing:
        return ""
    return f"{' and '.join(missing)} must be given, for example `{text.example}`; --help lists the flags"


def short_help(parser: ArgumentParser, text: HelpText, sections: Sequence[str]) -> str:
    """The help of a job.

    Args:
        parser: The parser, whose groups have the flags.
        text: What the help says beside them.
        sections: First parts of the names of the flags, in order.
    """
    width = min(max(WIDTHS[0], shutil.get_terminal_size().columns - 2), WIDTHS[1])
    needed = " ".join(f"({' | '.join(_flags(group))})" if len(group) > 1 else _flags(group)[0] for group in text.needed)
    usage, actions = f"usage: {parser.prog} {needed} [flags]", _shown_actions(parser)
    lines = [usage, "", *textwrap.wrap(f"{text.description} A default is in brackets.", width)]
    for section in (*sections, "hardware", "general"):
        lines += ["", f"{section}:"]
        for action in actions.get(section, ()):
            about = HARDWARE.get(action.dest) or _first_sentence(action.help or "")
            default = "" if section == "general" else f" {_default(action, text.needed)}"
            begin = f"  {', '.join(_names(action))} {_value(action)}".rstrip()
            lines += textwrap.wrap(f"{begin}  {about}{default}", width, subsequent_indent=INDENT, **_WHOLE_WORDS)
    return "\n".join([*lines, *([""] if text.ending else []), *text.ending.splitlines(), ""])


_WHOLE_WORDS: Mapping[str, Any] = {"break_on_hyphens": False, "break_long_words": False}


def _shown_actions(parser: ArgumentParser) -> dict[str, list[argparse.Action]]:
    """The flags of each section of the help."""
    shown: dict[str, list[argparse.Action]] = {}
    for action in parser._actions:
        section, dot, _ = action.dest.partition(".")
        if not dot:
            section = "" if action.metavar == "CONFIG" else "general"  # a section's own flag takes a file
        elif section == "trainer":
            section = "hardware" if action.dest in HARDWARE else ""
        if argparse.SUPPRESS not in (action.help or ""):
            shown.setdefault(section, []).append(action)
    return shown


def _flags(names: Sequence[str]) -> list[str]:
    return [f"--{name}" for name in names]


def _first_sentence(text: str) -> str:
    """The first sentence of a description, which has the meaning and the unit; of a long one what a semicolon ends."""
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z'])", " ".join(text.split()))[0]
    return sentence if len(sentence) <= LONG else sentence.partition(";")[0].removesuffix(".") + "."


def _names(action: argparse.Action) -> list[str]:
    """The names of a flag, without jsonargparse's form that appends to a list."""
    return [name for name in action.option_strings if not name.endswith("+")]


def _value(action: argparse.Action) -> str:
    """Placeholder of a flag's value."""
    if action.nargs == 0:
        return ""
    annotation = getattr(action, "_typehint", None)
    types = (annotation, *get_args(annotation))
    if isinstance(action.metavar, str) and action.metavar.startswith("{"):
        return action.metavar
    name = re.split(r"[._]", action.dest)[-1].upper()
    return "N" if int in types else "X" if float in types else name


def _default(action: argparse.Action, needed: Needed) -> str:
    """The default of a flag, or that it is needed."""
    for group in needed:
        if action.dest in group:
            others = " or ".join(f"--{name}" for name in group if name != action.dest)
            return f"[needed, or {others}]" if others else "[needed]"
    value = action.default
    if value is None or value == [] or value == {}:
        return "[none]"
    shown = str(value).lower() if isinstance(value, bool) else str(value).strip("()")
    return f"[{shown}]"
