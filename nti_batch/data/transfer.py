"""Opens shards: files, files of servers and object stores, and the output of commands."""

import io
import os
import select
import stat
import subprocess
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from webdataset.gopen import Pipe, gopen, rewrite_url

from nti_batch.data.answer import Answer
from nti_batch.data.download import Download
from nti_batch.data.hub import request_from_hub
from nti_batch.data.object_stores import STORES, request_object
from nti_batch.data.shards import COMMAND, is_url, refuse_pipes
from nti_batch.data.web import request_url

READ_TIMEOUT = 120.0
"""Seconds without data after which a transfer counts as broken."""

_REQUESTS: dict[str, Callable[..., Coroutine[Any, Any, Answer]]] = {
    "http": request_url,
    "https": request_url,
    "hf": request_from_hub,
    **dict.fromkeys(STORES, request_object),
}


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


def _open(url: str, stopped: Callable[[], bool]) -> io.RawIOBase:
    if is_url(url) and (request := _REQUESTS.get(url.partition(":")[0])):
        return Download(partial(request, url), stopped, READ_TIMEOUT)
    return _File(_path(url), stopped)


class Source:
    """An open shard: a file, here or on a server, or the output of a command."""

    def __init__(self, url: str, stopped: Callable[[], bool], allow_pipe: bool) -> None:
        """Open a shard. All shards are opened here.

        Args:
            url: Path or url; WebDataset's variable GOPEN_REWRITE may change it.
            stopped: Called before each read and while data is waited for; True ends the transfer.
            allow_pipe: Whether the url may be a shell command.

        Raises:
            ValueError: If it is one, and may not be.
            OSError: If the path is no regular file, or cannot be opened.
        """
        url = rewrite_url(url)
        if not allow_pipe:
            refuse_pipes([url])
        self._stopped = stopped
        self._pipe: Pipe | None = gopen(url) if url.startswith(COMMAND) else None
        self._output = _Output(self._pipe, stopped) if self._pipe else None
        # Pipe's own read drops what it has just read when its command has failed
        raw: io.RawIOBase = self._output or _open(url, stopped)
        self.stream: io.BufferedReader = io.BufferedReader(raw)

    def close(self) -> str:
        """Close the shard, and return why its command failed; empty if it did not.

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
        if self._output.has_stalled:
            return f"the command wrote nothing for {READ_TIMEOUT:g} seconds"
        return f"the command ended with exit code {self._pipe.status}"


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
