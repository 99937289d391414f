"""Parsers of commands from the signatures and docstrings of their functions."""

import inspect
import re
from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

from docstring_parser import parse
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from nti_batch.exit_codes import ERROR
from nti_batch.files import OutputError, refuse_url
from nti_batch.jobs.consent import check_consent
from nti_batch.jobs.flag_parser import FlagParser
from nti_batch.lock import UnitInUseError
from nti_batch.terminal import own_lines, print_error, usage_error

OptionalText = Annotated[str | None, "positional"]
"""Type of a positional argument that may be left out."""


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a description, and adds types and defaults to flags."""

    def _expand_help(self, action: Action) -> str:
        """The help of a flag, without Python's way to write a class."""
        return re.sub(r"<class '(\w+)'>", r"\1", super()._expand_help(action))


class CommandParser(FlagParser):
    """A parser whose errors are printable: they repeat arguments, and a shell expands `*` to any name of a file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of jsonargparse."""
        super().__init__(*args, formatter_class=HelpFormatter, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error, and exit."""
        super().error(own_lines(message), ex)


def function_parser(
    function: Callable[..., int], prog: str, as_positional: bool = True, usage: str | None = None
) -> ArgumentParser:
    """The parser of a command.

    Flags of type bool take no value, lists take several values, and a dataclass is a group of flags. A keyword-only
    argument without a default is a required flag.

    Args:
        function: The command, with a Google-style docstring.
        prog: Name of the command for the help.
        as_positional: Whether arguments without a default are positional; otherwise they are required flags.
        usage: Usage of the command in a line or two; None lists all flags.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    doc = parse(function.__doc__ or "")
    parameters = inspect.signature(function).parameters.values()
    own: dict[str, Any] = {p.name: {"action": "store_true"} for p in parameters if p.annotation is bool}
    own |= {p.name: {"type": p.annotation, "required": True} for p in parameters if _is_required_flag(p)}
    own |= {p.name: {"nargs": "+"} for p in parameters if p.annotation == list[str] | None}
    optional = [p.name for p in parameters if p.annotation == OptionalText]
    groups = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}
    parser = CommandParser(
        prog=prog,
        usage=usage,
        description="\n\n".join(filter(None, (doc.short_description, doc.long_description))),
        allow_abbrev=False,
    )
    parser.add_function_arguments(
        function, as_group=False, as_positional=as_positional, skip={*own, *optional, *groups}
    )
    described = {param.arg_name: " ".join((param.description or "").split()) for param in doc.params}
    for name in optional:
        parser.add_argument(name, nargs="?", type=str | None, help=described[name])
    for name, how in own.items():
        parser.add_argument(f"--{name}", help=described[name], **how)
    for name, flags in groups.items():
        parser.add_class_arguments(flags, name)
    return parser


def _is_required_flag(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty


def run_function(function: Callable[..., int], argv: Sequence[str], parser: ArgumentParser | None = None) -> int:
    """Run a command with the arguments of its command line; return its exit code.

    Args:
        function: The command.
        argv: Arguments behind the command's name.
        parser: Parser of the command; None makes the one of its signature.
    """
    parser = parser or function_parser(function, f"nti-batch {function.__name__}")
    parsed = parser.parse_args(list(argv))
    try:
        check_consent(argv, parsed)
        arguments: dict[str, Any] = vars(parser.instantiate(parsed))
        for name, value in arguments.items():
            if isinstance(value, Path):
                refuse_url(name, value)
        return function(**arguments)
    except ValueError as error:
        return usage_error(error)
    except (OutputError, UnitInUseError) as error:
        print_error(str(error))
        return ERROR
