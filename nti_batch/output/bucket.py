"""Objects below an address in a store: put if absent, put, read, list, remove. One class speaks to all stores.

The library repeats what a server answers with 5xx, and reading. What remains is repeated here: a put whose answer is
lost may have succeeded, so the same bytes are put again, and found there.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar
from uuid import uuid4

from nti_batch.data.answer import RefusedError, first_line
from nti_batch.data.download import Download
from nti_batch.data.object_stores import check_process, open_store, request_object, split_address
from nti_batch.data.transfer import READ_TIMEOUT
from nti_batch.files import OutputError, atomic_open, translate_os_errors
from nti_batch.phrases import without_credentials

ANSWER_TIMEOUT = timedelta(minutes=5)
"""Limit for an answer to a put of a piece, or of a small object."""

PUT_PIECE = 1 << 24
"""Bytes of a file that one request puts."""

PUTS_AT_ONCE = 4
"""Pieces of a file that are put at the same time; so many are in memory."""

PIECE = 1 << 20
"""Bytes of a download that are written at a time."""

RETRY_DELAYS = (1.0, 5.0, 20.0)
"""Seconds between the tries of an operation, each of which the library has tried several times itself."""

PROBE = "probe"
_T = TypeVar("_T")


class Version(NamedTuple):
    """What tells an object from another one that was put in its place."""

    second: int
    """When it was put, by the clock of the store; answers to a listing may be more exact than others."""

    size: int

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Self:
        """The version in the library's description of an object."""
        return cls(int(meta["last_modified"].timestamp()), meta["size"])


class Bucket:
    """The objects of one run. Every method raises an OutputError that names the object if the store does not answer."""

    def __init__(self, address: str) -> None:
        """Send nothing yet.

        Args:
            address: Address of the run, such as 's3://bucket/run'; credentials and endpoints are those of the store's
                own environment variables and files.

        Raises:
            ValueError: If the address cannot be one of a run, obstore is not installed, or it cannot open the bucket.
        """
        self.address = address.rstrip("/")
        bucket, folder = split_address(self.address)
        if (shown := without_credentials(self.address)) != self.address:
            raise ValueError(f"{shown!r} goes on with '?' or '#': leave that out")
        if folder and {"", ".", ".."} & set(folder.split("/")):
            raise ValueError(f"{address!r} has an empty part, '.' or '..': leave that out")
        self._prefix = f"{folder}/" if folder else ""
        try:
            self._store = open_store(bucket, ANSWER_TIMEOUT)
        except Exception as error:  # the library's errors have no common class here
            raise ValueError(f"{address!r} cannot be opened: {first_line(error)}") from error

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one of this name; return whether there was none.

        A put that is repeated may find its own bytes: False says no more than that the name is taken.
        """
        return self._repeat(name, "written", partial(self._create, name, content))

    def _create(self, name: str, content: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            obstore.put(self._store, self._prefix + name, content, mode="create")
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def put(self, name: str, content: bytes) -> None:
        """Write a small object, over another one of this name."""
        import obstore

        self._repeat(name, "written", lambda: obstore.put(self._store, self._prefix + name, content))

    def put_file(self, name: str, path: Path) -> None:
        """Write a file as an object, over another one of this name.

        Raises:
            OSError: If the file cannot be read.
        """
        import obstore

        with open(path, "rb") as file:

            def put() -> None:
                file.seek(0)
                obstore.put(self._store, self._prefix + name, file, chunk_size=PUT_PIECE, max_concurrency=PUTS_AT_ONCE)

            self._repeat(name, "written", put)

    def read(self, name: str) -> bytes | None:
        """Read a small object; None if there is none."""
        found = self.read_version(name)
        return found and found[0]

    def read_version(self, name: str) -> tuple[bytes, Version] | None:
        """Read a small object and its version; None if there is none."""
        import obstore

        def get() -> tuple[bytes, Version]:
            found = obstore.get(self._store, self._prefix + name)
            return found.bytes().to_bytes(), Version.of(found.meta)

        return self._if_there(name, get)

    def version(self, name: str) -> Version | None:
        """The version of an object; None if there is none."""
        import obstore

        return self._if_there(name, lambda: Version.of(obstore.head(self._store, self._prefix + name)))

    def _if_there(self, name: str, operation: Callable[[], _T]) -> _T | None:
        try:
            return self._repeat(name, "read", operation)
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
                if self.version(name) is None:
                    raise ValueError(f"{address} is missing") from error
                raise OutputError(f"{address} cannot be read: {error}; run the same command again") from error

    def list(self, folder: str) -> dict[str, Version]:
        """Names of the objects of a folder, without its name, and their versions; one request gives a thousand."""
        import obstore

        prefix = f"{self._prefix}{folder}/"

        def found() -> dict[str, Version]:
            pages = obstore.list(self._store, prefix)
            return {each["path"].removeprefix(prefix): Version.of(each) for page in pages for each in page}

        return self._repeat(f"{folder}/", "listed", found)

    def remove(self, name: str) -> None:
        """Remove an object, if there is one."""
        import obstore

        with suppress(FileNotFoundError):
            self._repeat(name, "removed", lambda: obstore.delete(self._store, self._prefix + name))

    def check_condition(self) -> None:
        """Check that there is such a bucket, and that it observes the condition of `put_if_absent`.

        Raises:
            ValueError: If there is none, or it writes over an object all the same.
        """
        name = f"{PROBE}-{uuid4()}"
        try:
            with _translated(f"{self.address}/{name}", "written"):
                self._create(name, b"first")
        except _NoBucketError as error:
            raise ValueError(f"{error}: create it") from error
        except OutputError:
            self.put_if_absent(name, b"first")
        try:
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


class _NoBucketError(OutputError):
    """There is no such bucket to write to."""


@contextmanager
def _translated(address: str, done: str) -> Iterator[None]:
    """Turn errors of the store into one that names the object; a missing object stays a FileNotFoundError.

    Raises:
        OutputError: In place of the library's own errors.
    """
    from obstore.exceptions import BaseError, PermissionDeniedError

    check_process()
    try:
        yield
    except PermissionDeniedError as error:
        raise _AccessError(
            f"{address} cannot be {done}: {first_line(error)}; give credentials as the store's own tools take them, "
            "and set the clock, if it is wrong"
        ) from error
    except FileNotFoundError as error:
        if done != "written":
            raise
        raise _NoBucketError(f"{address} cannot be written, since there is no such bucket") from error
    except BaseError as error:
        raise OutputError(
            f"{address} cannot be {done}: {first_line(error)}; what is committed stays readable: run the same command "
            "again"
        ) from error
