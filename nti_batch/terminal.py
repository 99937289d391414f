r"""Everything that a command shows or logs goes through here: keys, captions and names of files come from elsewhere.

An escape sequence in one of them could retitle or clear a terminal, a line break forge a line of the log, and a control
character of bidirectional text turn a line around. Such characters are shown as `\x1b`, `\n` or `\u202e`. Of urls, in
messages of other packages too, users, passwords, queries and fragments are left out.
"""

import json
import logging
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from nti_batch.exit_codes import ERROR, WRONG_SETTINGS
from nti_batch.phrases import hide_credentials
from nti_batch.streams import discard


def printable(text: str) -> str:
    """Escape each character that Unicode does not count as printable, as `repr` does; letters of any script stay."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Make a line of a text from anywhere, without the credentials of its urls."""
    return printable(hide_credentials(text))


def own_lines(text: str) -> str:
    """Make each line of a text `one_line`, and keep the line breaks, which are the text's own."""
    return "\n".join(map(one_line, text.split("\n")))


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print one line.

    Args:
        text: The line.
        file: Stream to print to; None is the standard output.
    """
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(one_line(text).encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of the standard output."""
    for line in lines:
        print_line(line)


def print_json(value: object) -> None:
    """Print a value as one line of JSON, which a program reads: nothing in it is left out."""
    # of all characters that are not printable, json.dumps leaves this one alone
    print(json.dumps(value).replace("\x7f", "\\u007f"), flush=True)


def print_outcome(lines: Iterable[str]) -> None:
    """Print lines on which the exit code does not depend: standard output may be gone."""
    try:
        print_lines(lines)
    except OSError:
        discard(sys.stdout)


def print_error(text: str) -> None:
    """Print what is wrong, as one line of the standard error, if that is still there."""
    try:
        print_line(f"nti-batch: {' '.join(text.split())}", sys.stderr)
    except OSError:
        discard(sys.stderr)


def usage_error(error: Exception) -> int:
    """Print in one line what is wrong with the settings, and return the exit code."""
    print_error(str(error))
    return WRONG_SETTINGS


def end_in_error(error: OSError) -> int:
    """Report an error of the operating system, unless the reader of standard output has left; return the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
    if not isinstance(error, BrokenPipeError):
        where = "" if error.filename is None else f"{error.filename}: "
        print_error(f"{where}{error.strerror or error}")
    return ERROR


def print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that ends the process; for `sys.excepthook`."""
    for line in "".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"):
        print_line(line, sys.stderr)


class LineFormatter(logging.Formatter):
    """Formats a record of the log as one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Escape what is not printable, and hide credentials."""
        return one_line(super().format(record))


class TerminalHandler(logging.Handler):
    """Prints to the present `sys.stderr`: a progress bar replaces it, to stay below the printed lines."""

    def __init__(self, prefix: str) -> None:
        """Print warnings and errors.

        Args:
            prefix: Prefix of each line.
        """
        super().__init__(logging.WARNING)
        self.setFormatter(LineFormatter(f"{prefix}nti-batch: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line, if standard error is still there."""
        try:
            print_line(self.format(record), sys.stderr)
        except OSError:
            discard(sys.stderr)


@contextmanager
def terminal_log(prefix: str = "") -> Iterator[None]:
    """Print the warnings and errors of the package's log, in place of an outer `terminal_log`.

    Args:
        prefix: Prefix of each line.
    """
    package, terminal = logging.getLogger("nti_batch"), TerminalHandler(prefix)
    outer = [handler for handler in package.handlers if isinstance(handler, TerminalHandler)]
    for handler in outer:
        package.removeHandler(handler)
    package.addHandler(terminal)
    try:
        yield
    finally:
        package.removeHandler(terminal)
        for handler in outer:
            package.addHandler(handler)
