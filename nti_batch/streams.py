"""Standard output and standard error, which may be closed, full, or a pipe that nobody reads any more."""

import os
import sys
from typing import TextIO

from nti_batch.exit_codes import ERROR, WRONG_SETTINGS


def open_streams() -> None:
    """Replace closed streams by the null device, and let standard output escape what its encoding lacks.

    Otherwise a file of the run would get the number of standard error, and receive what libraries print there.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # open until the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Send to the null device what a stream still holds, and all that follows."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def print_outcome(text: str) -> None:
    """Print a text on which the exit code does not depend: standard output may be gone."""
    try:
        print(text, flush=True)
    except OSError:
        discard(sys.stdout)


def print_error(text: str) -> None:
    """Print what is wrong in one line on standard error, if that is still there."""
    try:
        print(f"nti-batch: {' '.join(text.split())}", file=sys.stderr, flush=True)
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
