"""Completion in the shell: `nti-batch completion bash` prints a script that knows every command and flag.

The script is made once, and asks no Python while somebody types: to import torch takes seconds.
"""

import argparse
from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh")


def completion_script(
    parser: argparse.ArgumentParser,
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    flags: Mapping[str, Sequence[argparse.ArgumentParser]],
    shell: str,
) -> str:
    """The script for one of `SHELLS`.

    Args:
        parser: Of the command line.
        commands: Of the parser; those that read their arguments by themselves have no flags there, and get them.
        flags: The parsers of each of those.
        shell: What is to complete.

    Raises:
        ValueError: If the package that writes such scripts is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ValueError("completion needs shtab: pip install 'nti-batch[completion]'") from error

    for name, parsers in flags.items():
        commands.choices[name] = _plain(parsers)
    script: str = shtab.complete(parser, shell)
    return script


def _plain(parsers: Sequence[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """A parser of nothing but the flags: those of jsonargparse are more than shtab understands."""
    plain = argparse.ArgumentParser(conflict_handler="resolve")
    for action in (action for parser in parsers for action in parser._actions):
        if action.option_strings and action.help != argparse.SUPPRESS:
            about = " ".join(str(action.help or "").split()).replace("%", "%%")
            plain.add_argument(*action.option_strings, choices=action.choices, help=about)
    return plain
