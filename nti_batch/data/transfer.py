"""Opens shards: files, and urls by WebDataset's openers, which run tools such as curl that write to a pipe."""

import io
import os
import select
import time
from collections.abc import Callable
from typing import Any

from webdataset.gopen import Pipe, gopen, rewrite_url

from nti_batch.data.shards import is_url, refuse_pipes

READ_TIMEOUT = 120.0
"""Seconds without data after which a transfer counts as broken; curl's own retries, set by WebDataset, take 60."""


_CURL_HTTP_ERROR = 22


_CURL_ERRORS = {
    6: "the host is not found",
    7: "the host does not answer",
    18: "the connection was cut",
    _CURL_HTTP_ERROR: "the server answers with an error",
    28: "the host does not answer in time",
    52: "the server sends no answer",
    56: "the connection was cut",
}


class Source:
    """An open shard: a file, or the output of a command such as curl."""

    def __init__(self, url: str, stopped: Callable[[], bool], allow_pipe: bool) -> None:
        """Open a file, or a url with WebDataset's opener. All shards are opened here.

        Args:
            url: Path or url.
            stopped: Called while data is waited for; True ends the transfer.
            allow_pipe: Whether the url may be a shell command.

        Raises:
            ValueError: If it is one, and may not be.
        """
        if not allow_pipe:
            # WebDataset's GOPEN_REWRITE can turn another url into a command
            refuse_pipes([url, rewrite_url(url)])
        opened: Any = gopen(url) if is_url(url) else open(url, "rb")  # noqa: SIM115
        self._pipe = opened if isinstance(opened, Pipe) else None
        self._output = _Output(opened, stopped) if self._pipe else None
        # Pipe's own read drops what it has just read when its command has failed
        self.stream: io.BufferedReader = io.BufferedReader(self._output) if self._output else opened

    @property
    def was_refused(self) -> bool:
        """Whether the server answered with an error, which another attempt would meet again."""
        return self._pipe is not None and self._tool == "curl" and self._pipe.status == _CURL_HTTP_ERROR

    @property
    def _tool(self) -> str:
        """Name of WebDataset's tool; empty for a user's command, which may hold a token and is not shown."""
        assert self._pipe is not None
        command = self._pipe.args[0][0]
        return str(command[0]) if isinstance(command, list) else ""

    def close(self) -> str:
        """Close the shard, and return why its transfer failed; empty if it did not.

        A command that is stopped early dies of its broken pipe, which is no failure.
        """
        if self._pipe is None or self._output is None:
            self.stream.close()
            return ""
        try:
            has_ended = self._output.has_stalled or not self.stream.peek(1)
        except OSError:
            has_ended = True
        try:
            self._pipe.close()
        except OSError:
            return self._failure() if has_ended else ""
        return ""

    def _failure(self) -> str:
        assert self._pipe is not None and self._output is not None
        tool = repr(self._tool) if self._tool else "the command"
        if self._output.has_stalled:
            return f"{tool} wrote nothing for {READ_TIMEOUT:g} seconds"
        reason = _CURL_ERRORS.get(self._pipe.status, "") if self._tool == "curl" else ""
        return f"{tool} ended with exit code {self._pipe.status}" + (reason and f": {reason}")


class _Output(io.RawIOBase):
    """Output of a command that keeps writing."""

    def __init__(self, pipe: Pipe, stopped: Callable[[], bool]) -> None:
        """Take over the output of a running command."""
        self.has_stalled = False
        self._pipe, self._stopped = pipe, stopped
        self._ready = select.poll()
        self._ready.register(pipe.stream.fileno(), select.POLLIN)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what the command has written, after waiting for it.

        Raises:
            OSError: If nothing comes for `READ_TIMEOUT` seconds, or the job is to stop.
        """
        deadline = time.monotonic() + READ_TIMEOUT
        while not self._ready.poll(1000):
            if self._stopped() or time.monotonic() >= deadline:
                self.has_stalled = True
                self._pipe.proc.kill()
                raise OSError("the transfer has stalled")
        data = os.read(self._pipe.stream.fileno(), len(buffer))
        buffer[: len(data)] = data
        return len(data)
