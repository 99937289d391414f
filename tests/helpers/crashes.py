"""System calls that fail, and processes that die at a chosen one."""

import errno
import itertools
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest

Moment = Literal["before", "half", "after"]


CRASHED = 9
"""Exit code of a process that a `Crash` has ended."""


class Crash:
    """Ends the process at one of its calls that reach the disk."""

    def __init__(self, step: int, moment: Moment) -> None:
        """Choose the call.

        Args:
            step: Number of the call, from 0.
            moment: Whether the process ends before the call, after half of it, or after it.
        """
        self.step, self.moment, self.steps = step, moment, itertools.count()

    def in_call(self, call: Callable[..., Any], halve: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
        """Return the call with the crash in it; `halve` cuts the first argument of a call that can be half done."""

        def called(*arguments: Any) -> Any:
            is_now = next(self.steps) == self.step
            if is_now and self.moment == "half" and halve:
                call(halve(arguments[0]))
            if is_now and self.moment != "after":
                os._exit(CRASHED)
            result = call(*arguments)
            if is_now:
                os._exit(CRASHED)
            return result

        return called

    def open(self, *arguments: Any, **options: Any) -> Any:
        """Open a file whose writes may crash."""
        file = open(*arguments, **options)  # noqa: SIM115
        file.write = self.in_call(file.write, lambda content: content[: len(content) // 2])
        return file


def fill_disk_at(patch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Let one call of `os.fsync` or `os.replace` fail as on a full disk.

    Args:
        patch: Ends the failures with its context.
        name: 'fsync' or 'replace'.
        call: Number of the call that fails, from 0.
    """
    real, calls = getattr(os, name), itertools.count()

    def fails(*arguments: object) -> object:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    patch.setattr(os, name, fails)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of files, in bytes; the limit cuts a write short, as a full disk does."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
