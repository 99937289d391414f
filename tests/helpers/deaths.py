"""Processes that die at a chosen system call."""

import itertools
import os
from collections.abc import Callable
from typing import Any, Literal

Moment = Literal["before", "half", "after"]


DIED = 9


class Death:
    """Ends the process at one step of all those that reach the disk."""

    def __init__(self, step: int, moment: Moment) -> None:
        """Come at this step, counted from 0."""
        self.step, self.moment, self.steps = step, moment, itertools.count()

    def lurks_in(self, call: Callable[..., Any], halve: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
        """The call, or death before it, after it, or when it has done half."""

        def called(*arguments: Any) -> Any:
            is_now = next(self.steps) == self.step
            if is_now and self.moment == "half" and halve:
                call(halve(arguments[0]))
            if is_now and self.moment != "after":
                os._exit(DIED)
            result = call(*arguments)
            if is_now:
                os._exit(DIED)
            return result

        return called

    def open(self, *arguments: Any, **options: Any) -> Any:
        """A file in whose writes it lurks."""
        file = open(*arguments, **options)  # noqa: SIM115
        file.write = self.lurks_in(file.write, lambda content: content[: len(content) // 2])
        return file
