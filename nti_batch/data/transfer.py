"""Opens shards: files, and urls by WebDataset's openers, which run tools such as curl that write to a pipe."""

import io
import os
import select
import stat
import subprocess
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from webdataset.gopen import Pipe, gopen, gopen_curl, gopen_schemes, rewrite_url

from nti_batch.data.shards import is_url, refuse_pipes

READ_TIMEOUT = 120.0
"""Seconds without data after which a transfer counts as broken; curl's own retries, set by WebDataset, take 60."""


_CURL = ("curl", "--globoff", "--connect-timeout", "30", "--retry", "30", "--retry-delay", "2", "-f", "-s", "-L")
"""WebDataset's command line without curl's own patterns: WebDataset's braces are expanded, and brackets are a name."""


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


def _is_path(address: str) -> bool:
    return not is_url(address) or address.startswith("file:")


def _path(address: str) -> str:
    """Path of a file, or of a `file:` url.

    Raises:
        OSError: If it cannot be one.
    """
    try:
        path = url2pathname(urlsplit(address).path) if is_url(address) else address
    except ValueError as error:
        raise OSError(f"{address!r} is no url of a file: {error}") from error
    if "\0" in path:
        raise OSError(f"{address!r} is no path: it has a zero byte")
    return path


def _open_url(url: str) -> Pipe:
    url = rewrite_url(url)
    if gopen_schemes.get(url.partition(":")[0]) is gopen_curl:
        return Pipe([*_CURL, url], mode="rb", bufsize=8192, ignore_status=[141, 23])
    return gopen(url)


class Source:
    """An open shard: a file, or the output of a command such as curl."""

    def __init__(self, url: str, stopped: Callable[[], bool], allow_pipe: bool) -> None:
        """Open a file, or a url with WebDataset's opener. All shards are opened here.

        Args:
            url: Path or url.
            stopped: Called before each read and while data is waited for; True ends the transfer.
            allow_pipe: Whether the url may be a shell command.

        Raises:
            ValueError: If it is one, and may not be.
            OSError: If the path is no regular file, or cannot be opened.
        """
        if not allow_pipe:
            # WebDataset's GOPEN_REWRITE can turn another url into a command
            refuse_pipes([url, rewrite_url(url)])
        self._stopped = stopped
        self._pipe = None if _is_path(url) else _open_url(url)
        self._output = _Output(self._pipe, stopped) if self._pipe else None
        # Pipe's own read drops what it has just read when its command has failed
        raw: io.RawIOBase = self._output or _File(_path(url), stopped)
        self.stream: io.BufferedReader = io.BufferedReader(raw)

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

        A command that is stopped early is killed, which is no failure.
        """
        if self._pipe is None or self._output is None:
            self.stream.close()
            return ""
        try:
            has_ended = self._output.has_stalled or not self.stream.peek(1)
        except OSError:
            has_ended = True
        if has_ended:
            self._wait_for_exit(self._output)
        else:
            self._pipe.proc.kill()
        try:
            self._pipe.close()
        except OSError:
            return self._failure() if has_ended else ""
        return ""

    def _wait_for_exit(self, output: "_Output") -> None:
        """Wait for a command that writes no more, and kill it if it does not end."""
        assert self._pipe is not None
        deadline = time.monotonic() + READ_TIMEOUT
        while True:
            try:
                self._pipe.proc.wait(0.5)
                return
            except subprocess.TimeoutExpired:
                if self._stopped() or time.monotonic() >= deadline:
                    output.has_stalled = True
                    self._pipe.proc.kill()
                    return

    def _failure(self) -> str:
        assert self._pipe is not None and self._output is not None
        tool = repr(self._tool) if self._tool else "the command"
        if self._output.has_stalled:
            return f"{tool} wrote nothing for {READ_TIMEOUT:g} seconds"
        reason = _CURL_ERRORS.get(self._pipe.status, "") if self._tool == "curl" else ""
        return f"{tool} ended with exit code {self._pipe.status}" + (reason and f": {reason}")


class _File(io.FileIO):
    """A regular file. Others, such as a named pipe, may let their reader wait for ever."""

    def __init__(self, path: str, stopped: Callable[[], bool]) -> None:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(f"{path!r} is no regular file")
        super().__init__(path)
        self._stopped = stopped

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes.

        Raises:
            OSError: If the job is to stop.
        """
        if self._stopped():
            raise OSError("the job is to stop")
        return super().readinto(buffer)


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
        while (is_to_stop := self._stopped()) or not self._ready.poll(1000):
            if is_to_stop or time.monotonic() >= deadline:
                self.has_stalled = True
                self._pipe.proc.kill()
                raise OSError("the transfer has stalled")
        data = os.read(self._pipe.stream.fileno(), len(buffer))
        buffer[: len(data)] = data
        return len(data)
