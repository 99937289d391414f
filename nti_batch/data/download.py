"""Reads a remote file as a stream that outlives its connections."""

import asyncio
import io
import random
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from typing import Any, TypeVar

from fsspec.asyn import get_loop

from nti_batch.data.answer import Answer, BrokenError, RefusedError, Request

RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before each new attempt, up to a third less by chance; data that comes makes them start again."""

MAX_PAUSE = 300.0
"""Most seconds that a server's wish to be left alone is followed."""

_CHANGED = "the file has changed on the server while it was read"
_T = TypeVar("_T")


class Download(io.RawIOBase):
    """A remote file from its start to its end; after a cut or a stall it goes on at the same byte."""

    def __init__(self, request: Request, stopped: Callable[[], bool], read_timeout: float) -> None:
        """Send nothing yet.

        Args:
            request: Asks for the rest of the file.
            stopped: Called before each read and while data is waited for; True ends the transfer.
            read_timeout: Seconds without data after which a connection counts as broken.
        """
        self._request, self._stopped, self._read_timeout = request, stopped, read_timeout
        self._offset = 0
        self._size: int | None = None
        self._version = ""
        self._answer: Answer | None = None
        self._answered = 0
        """Offset behind what the present answer has given."""

        self._unread = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come, after waiting for it.

        Raises:
            OSError: If the server refuses, the transfer breaks again and again, the file changes, or the job is to
                stop.
        """
        if not self._unread:
            self._unread = memoryview(self._receive_patiently())
            self._offset += len(self._unread)
        count = min(len(buffer), len(self._unread))
        buffer[:count] = self._unread[:count]
        self._unread = self._unread[count:]
        return count

    def close(self) -> None:
        """Give the connection up."""
        self._hang_up()
        super().close()

    def _receive_patiently(self) -> bytes:
        for delay in (*RETRY_DELAYS, None):
            try:
                return self._receive()
            except BrokenError as error:
                self._hang_up()
                if delay is None:
                    raise RefusedError(f"{error} (tried {len(RETRY_DELAYS) + 1} times)") from error
                self._await(asyncio.sleep(max(delay * random.uniform(2 / 3, 1), min(error.pause, MAX_PAUSE))), None)
        raise AssertionError

    def _receive(self) -> bytes:
        """Return the bytes behind the offset; empty at the end of the file."""
        if self._offset == self._size:
            return b""
        if self._answer is None:
            self._answer = self._await(self._request(self._offset, self._version), self._read_timeout)
            self._check(self._answer)
            self._answered = self._answer.start
        while data := self._await(self._answer.read(), self._read_timeout):
            self._answered += len(data)
            # a server that knows no ranges sends again what was read
            if self._answered > self._offset:
                return data[-(self._answered - self._offset) :]
        if self._size is not None or self._answered < self._offset:
            raise BrokenError("the connection was cut")
        return b""

    def _check(self, answer: Answer) -> None:
        """Compare the version and the size with those of earlier answers, as far as both are known."""
        if answer.start > self._offset:
            raise RefusedError(f"the server answers from byte {answer.start} on, asked for {self._offset}")
        if (self._version and answer.version and answer.version != self._version) or (
            None not in (self._size, answer.size) and answer.size != self._size
        ):
            raise RefusedError(_CHANGED)
        self._version = self._version or answer.version
        self._size = answer.size if self._size is None else self._size

    def _await(self, step: Coroutine[Any, Any, _T], limit: float | None) -> _T:
        """Run a step to its end, unless it takes longer than the limit or the job is to stop."""
        future = asyncio.run_coroutine_threadsafe(step, get_loop())
        start = time.monotonic()
        while (is_to_stop := self._stopped()) or not wait([future], 0.5).done:
            if is_to_stop:
                future.cancel()
                raise RefusedError("the job is to stop")
            if limit is not None and time.monotonic() >= start + limit:
                future.cancel()
                raise BrokenError(f"nothing came for {limit:g} seconds")
        return future.result()

    def _hang_up(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
