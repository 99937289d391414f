"""Objects below an address in a store: put if absent, put, read, list, remove. One class speaks to all stores.

The library repeats what a server answers with 5xx, and reading. What remains is repeated here: a put whose answer is
lost may have succeeded, so the same bytes are put again, and found there.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from nti_batch.data.answer import RefusedError, first_line
from nti_batch.data.download import Download
from nti_batch.data.object_stores import check_process, open_store, request_object, split_address
from nti_batch.data.transfer import READ_TIMEOUT
from nti_batch.files import OutputError, atomic_open, translate_os_errors
from nti_batch.phrases import without_credentials

ANSWER_TIMEOUT = timedelta(minutes=5)
"""Limit for an answer to a put of a few MB, or of a small object."""

PIECE = 1 << 20
"""Bytes of a download that are written at a time."""

RETRY_DELAYS = (1.0, 5.0, 20.0)
"""Seconds between the tries of an operation, each of which the library has tried several times itself."""

PROBE = "probe"
_T = TypeVar("_T")


class Bucket:
    """The objects of one run. Every method raises an OutputError that names the object if the store does not answer."""

    def __init__(self, address: str) -> None:
        """Send nothing yet.

        Args:
            address: Address of the run, such as 's3://bucket/run'; credentials and endpoints are those of the store's
                own environment variables and files.

        Raises:
            ValueError: If the address holds credentials, '?' or '#', obstore is not installed, or it cannot open the
                bucket.
        """
        self.address = address.rstrip("/")
        bucket, folder = split_address(self.address)
        if (shown := without_credentials(self.address)) != self.address:
            raise ValueError(f"{shown!r} goes on with '?' or '#': leave that out")
        self._prefix = f"{folder}/" if folder else ""
        try:
            self._store = open_store(bucket, ANSWER_TIMEOUT)
        except Exception as error:  # the library's errors have no common class here
            raise ValueError(f"{address!r} cannot be opened: {first_line(error)}") from error

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one of this name; return whether there was none.

        A put that is repeated may find its own bytes: False says no more than that the name is taken.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> bool:
            try:
                obstore.put(self._store, self._prefix + name, content, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return self._repeat(name, "written", put)

    def put(self, name: str, content: bytes | Path) -> None:
        """Write an object, over another one of this name; of a large file, a few pieces at a time are in memory."""
        import obstore

        self._repeat(name, "written", lambda: obstore.put(self._store, self._prefix + name, content))

    def read(self, name: str) -> bytes | None:
        """Read a small object; None if there is none."""
        found = self.read_timed(name)
        return found and found[0]

    def read_timed(self, name: str) -> tuple[bytes, datetime] | None:
        """Read a small object and when it was put, by the clock of the store; None if there is none."""
        import obstore

        def get() -> tuple[bytes, datetime]:
            found = obstore.get(self._store, self._prefix + name)
            return found.bytes().to_bytes(), found.meta["last_modified"]

        try:
            return self._repeat(name, "read", get)
        except FileNotFoundError:
            return None

    def download(self, name: str, path: Path) -> None:
        """Copy an object to a file; after a cut it goes on at the same byte.

        Raises:
            ValueError: If there is none.
        """
        with translate_os_errors(path), atomic_open(path) as file:
            file.writelines(self._pieces(name))

    def _pieces(self, name: str) -> Iterator[bytes]:
        address = f"{self.address}/{name}"
        with Download(partial(request_object, address), lambda: False, READ_TIMEOUT) as source:
            try:
                while piece := source.read(PIECE):
                    yield piece
            except RefusedError as error:
                if self.put_time(name) is None:
                    raise ValueError(f"{address} is missing") from error
                raise OutputError(f"{address} cannot be read: {error}; run the same command again") from error

    def put_time(self, name: str) -> datetime | None:
        """When an object was put, by the clock of the store; None if there is none."""
        import obstore

        def head() -> datetime:
            put: datetime = obstore.head(self._store, self._prefix + name)["last_modified"]
            return put

        try:
            return self._repeat(name, "read", head)
        except FileNotFoundError:
            return None

    def list(self, folder: str) -> Iterator[tuple[str, datetime]]:
        """Names of the objects of a folder, without its name, and when each was put; one request gives a thousand."""
        import obstore

        prefix = f"{self._prefix}{folder}/"
        with _translated(f"{self.address}/{folder}/", "listed"):
            for found in obstore.list(self._store, prefix):
                yield from ((each["path"].removeprefix(prefix), each["last_modified"]) for each in found)

    def remove(self, name: str) -> None:
        """Remove an object, if there is one."""
        import obstore

        with suppress(FileNotFoundError):
            self._repeat(name, "removed", lambda: obstore.delete(self._store, self._prefix + name))

    def check_condition(self) -> None:
        """Check that the store observes the condition of `put_if_absent`.

        Raises:
            ValueError: If it writes over an object all the same.
        """
        name = f"{PROBE}-{time.time_ns():x}"
        try:
            self.put_if_absent(name, b"first")
            is_written = self.put_if_absent(name, b"second")
        finally:
            self.remove(name)
        if is_written:
            raise ValueError(
                f"{self.address!r} is in a store that ignores the condition 'If-None-Match: *', so that it cannot keep "
                "two jobs apart: write to a local folder and copy it there, or update the store"
            )

    def _repeat(self, name: str, done: str, operation: Callable[[], _T]) -> _T:
        for delay in (*RETRY_DELAYS, None):
            try:
                with _translated(f"{self.address}/{name}", done):
                    return operation()
            except _AccessError:
                raise
            except OutputError:
                if delay is None:
                    raise
                time.sleep(delay)
        raise AssertionError


class _AccessError(OutputError):
    """Access is refused, which no repetition mends."""


@contextmanager
def _translated(address: str, done: str) -> Iterator[None]:
    """Turn errors of the store into one that names the object; a missing object stays a FileNotFoundError.

    Raises:
        OutputError: In place of the library's own errors.
        ValueError: If there is no such bucket to write to.
    """
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    check_process()
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise _AccessError(
            f"{address} cannot be {done}: {first_line(error)}; give credentials as the store's own tools take them"
        ) from error
    except FileNotFoundError as error:
        if done != "written":
            raise
        raise ValueError(f"{address} cannot be written, since there is no such bucket: create it") from error
    except BaseError as error:
        raise OutputError(
            f"{address} cannot be {done}: {first_line(error)}; what is committed stays readable: run the same command "
            "again"
        ) from error
