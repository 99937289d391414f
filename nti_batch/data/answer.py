"""What a server answers to the request for a file, from an offset on; `web` and `object_stores` make the requests."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from nti_batch.phrases import hide_credentials


class RefusedError(OSError):
    """A request that another attempt would meet again."""


class BrokenError(OSError):
    """A request or an answer that broke, so that another attempt may get further."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        """Keep the reason, and the seconds that the server asks to wait."""
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True, slots=True)
class Answer:
    """The content of a file, from an offset on."""

    start: int
    """Offset of the first byte: the one that was asked for, or 0 from a server that knows no ranges."""

    size: int | None
    """Size of the whole file, if the server tells it."""

    version: str
    """Changes with the content of the file: its ETag or time. Empty if the server tells neither."""

    read: Callable[[], Coroutine[Any, Any, bytes]]
    """Wait for the next bytes; empty at the end."""

    close: Callable[[], None]
    """Give the connection up, from any thread."""


Request = Callable[[int, str], Coroutine[Any, Any, Answer]]
"""Ask for a file from an offset on, of the version that was read up to there (empty if unknown)."""


def first_line(error: Exception) -> str:
    """The first line of a library's error, which goes on with its insides, without the credentials of urls."""
    return hide_credentials(str(error).partition("\n")[0])[:300]
