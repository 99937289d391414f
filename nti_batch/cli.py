"""The command line: `nti-batch COMMAND ...`. Each command has a file in `commands`.

Exit codes are in `exit_codes`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import nti_batch
from nti_batch.exit_codes import STOPPED
from nti_batch.phrases import did_you_mean
from nti_batch.streams import open_streams
from nti_batch.terminal import end_in_error, own_lines, print_exception, terminal_log


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the command line. Its module is imported only when it runs: torch alone takes seconds."""

    help: str
    module: str
    """Module below `nti_batch.commands` with a function of the command's name, `_` for each `-`."""

    parses_itself: bool = False
    """Whether the function takes the list of arguments; otherwise its signature describes them."""


COMMANDS = {
    "check": Command("check a model on a few images, beside what a healthy one shows", "check"),
    "pack": Command("pack a folder or a table of images into shards", "pack"),
    "invert": Command("invert the images of WebDataset shards, or of a folder", "invert", parses_itself=True),
    "edit": Command("edit inverted images, or reconstruct them", "edit", parses_itself=True),
    "app": Command("look at a run and try edits on a local web page", "app"),
    "status": Command("print how far a run is", "status"),
    "report": Command("write a page about a run: numbers, charts, failures, images", "report"),
    "bench": Command("compare the job with the reference loop", "bench", parses_itself=True),
    "pie-bench": Command("compare inversion methods on PIE-Bench, beside its table", "pie_bench", parses_itself=True),
    "verify": Command("check a run: checksums, shapes, one commit for each record, nothing missing", "verify"),
    "score": Command("score a run of edits that have masks", "score"),
    "export": Command("write a run for diffusers, as images, as a table, or for the hub", "export"),
    "configs": Command("list the ready configurations for --config", "configs"),
    "env": Command("print versions and devices, for a bug report", "env"),
    "completion": Command("print a script that completes commands and flags in the shell", "completion"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    An error of the operating system that no command has expected ends in one line, too.
    """
    if argv is None:
        sys.excepthook = print_exception
    open_streams()
    try:
        try:
            return _run(argv)
        finally:
            # a full disk or a reader that has left may show only now
            sys.stdout.flush()
    except KeyboardInterrupt:
        return STOPPED
    except OSError as error:
        return end_in_error(error)


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        parser = command_parser()
        if arguments and not arguments[0].startswith("-"):
            hint = did_you_mean(arguments[0], COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
            parser.error(own_lines(f"there is no command {arguments[0]!r}{hint}"))
        parser.parse_args(arguments)
    name, *rest = arguments
    command = COMMANDS[name]
    function = getattr(import_module(f"nti_batch.commands.{command.module}"), name.replace("-", "_"))
    with terminal_log():
        if command.parses_itself:
            code: int = function(rest)
            return code
        from nti_batch.commands.parser import run_function

        return run_function(function, rest)


def command_parser() -> argparse.ArgumentParser:
    """The parser of the command's name."""
    parser = argparse.ArgumentParser(
        prog="nti-batch", description="Null-text inversion of image collections: prepares real images for editing."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {nti_batch.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
