"""The command line: the main job and its bench. Other commands are in `pack_command`, `edit_command`, `run_commands`.

The exit codes are in `job`. `status --exit-code` has the same: 0 done, 3 some have failed, 75 images are missing.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import nti_batch
from nti_batch.commands.bench import bench
from nti_batch.commands.completion import SHELLS, completion_script
from nti_batch.commands.edit import edit, one_picture_parser, prepare_edits
from nti_batch.commands.env import env
from nti_batch.commands.invert import invert, prepare_inversion
from nti_batch.commands.pack import add_pack
from nti_batch.commands.runs import add_export, add_report, add_score, add_status, add_verify
from nti_batch.jobs.run import DONE, silence_warnings, usage_error

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser, _ = _parsers()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not arguments.takes_rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    code: int = arguments.run(rest) if arguments.takes_rest else arguments.run(arguments)
    return code


def _parsers() -> tuple[argparse.ArgumentParser, "Commands"]:
    """That of the command line, and its commands."""
    parser = argparse.ArgumentParser(
        prog="nti-batch", description="Null-text inversion of image collections: real images become editable ones."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {nti_batch.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_pack(commands)
    _add_job(commands, "invert", "invert the images of WebDataset shards, or of a folder", invert)
    _add_job(commands, "edit", "edit inverted images, or rebuild them", edit)
    add_status(commands)
    add_report(commands)
    _add_job(commands, "bench", "compare the job with the authors' loop", bench)
    add_verify(commands)
    add_score(commands)
    add_export(commands)
    _add_env(commands)
    _add_completion(commands)
    return parser, commands


def _add_job(commands: "Commands", name: str, help: str, run: Callable[[Sequence[str]], int]) -> None:
    """A command that reads its arguments by itself."""
    commands.add_parser(name, help=help, add_help=False).set_defaults(run=run, takes_rest=True)


def _add_env(commands: "Commands") -> None:
    parser = commands.add_parser("env", help="print versions and devices, for a bug report")
    parser.add_argument("--model", metavar="NAME", help="print the fingerprint of this model, too; nothing is fetched")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(takes_rest=False, run=lambda a: env(a.model, a.json))


def _add_completion(commands: "Commands") -> None:
    parser = commands.add_parser("completion", help="print a script that completes commands and flags in the shell")
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(takes_rest=False, run=lambda a: completion(a.shell))


def completion(shell: str) -> int:
    """Print the script."""
    from jsonargparse import capture_parser

    from nti_batch.jobs.signals import StopSignals

    silence_warnings()
    flags: dict[str, list[argparse.ArgumentParser]] = {
        "invert": [capture_parser(prepare_inversion, [], StopSignals())],
        "edit": [capture_parser(prepare_edits, [], StopSignals()), one_picture_parser()],
        "bench": [capture_parser(bench, [])],
    }
    try:
        print(completion_script(*_parsers(), flags, shell))
    except ValueError as error:
        return usage_error(error)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
