"""`nti-batch completion`: a script for the shell that knows every command and flag.

The shell reads the script and starts no Python while somebody types: to import torch takes seconds.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Literal, get_args, get_origin

from nti_batch import cli
from nti_batch.commands import bench, edit, invert, pie_bench
from nti_batch.commands.parser import function_parser
from nti_batch.exit_codes import DONE
from nti_batch.jobs.parser import job_parser, silence_warnings


def completion(shell: Literal["bash", "zsh"]) -> int:
    """Print a script that completes commands and flags in the shell.

    Args:
        shell: The shell.
    """
    silence_warnings()
    try:
        import shtab
    except ImportError as error:
        raise ValueError("completion needs shtab: pip install 'nti-batch[completion]'") from error
    parser = cli.command_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name in commands.choices:
        commands.choices[name] = _plain(_parsers(name))
    script: str = shtab.complete(parser, shell)
    print(script)
    return DONE


def _parsers(name: str) -> Sequence[argparse.ArgumentParser]:
    """The parsers of a command."""
    match name:
        case "invert":
            return [job_parser(invert.COMMAND)]
        case "edit":
            return [job_parser(edit.COMMAND), edit.one_image_parser()]
        case "bench":
            return [bench.bench_parser()]
        case "pie-bench":
            return [pie_bench.pie_bench_parser()]
    module = import_module(f"nti_batch.commands.{cli.COMMANDS[name].module}")
    return [function_parser(getattr(module, name), name)]


def _plain(parsers: Sequence[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """A parser with the same flags for shtab, which does not understand those of jsonargparse."""
    plain = argparse.ArgumentParser(conflict_handler="resolve")
    for action in (action for parser in parsers for action in parser._actions):
        if action.help != argparse.SUPPRESS:
            about = " ".join(str(action.help or "").split()).replace("%", "%%")
            if action.option_strings:
                plain.add_argument(*action.option_strings, choices=_choices(action), help=about)
            elif action.dest != "help":
                plain.add_argument(action.dest, choices=_choices(action), help=about)
    return plain


def _choices(action: argparse.Action) -> Sequence[str] | None:
    """Allowed values of a flag, if they are listed."""
    annotation = getattr(action, "_typehint", None)
    return list(get_args(annotation)) if get_origin(annotation) is Literal else None
