"""Standard output and standard error, which may be closed, full, or a pipe that nobody reads any more."""

import os
import sys
from typing import TextIO


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
