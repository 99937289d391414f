"""Objects in the stores of Amazon (and those that speak its protocol), Google and Azure, by obstore.

Credentials, endpoints and regions are those that each store's own tools take; no address holds any.
"""

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nti_batch.data.answer import Answer, BrokenError, RefusedError, first_line
from nti_batch.phrases import without_credentials

if TYPE_CHECKING:
    from obstore.store import ObjectStore

STORES = {"s3": "s3", "gs": "gcs", "az": "azure"}
"""Schemes of the stores, with the extra of this package that each needs."""

_HINTS = {
    "s3": "AWS_PROFILE or AWS_ACCESS_KEY_ID, AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_PASSING = {"408", "429", "500", "502", "503", "504"}
_STATUS = re.compile(r"status code: ((\d{3})[\w -]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
"""The store's own name of an error, in the XML that all three answer with."""


@cache
def _first_process() -> int:
    """The process that obstore runs in; its threads do not live on in a fork."""
    return os.getpid()


def check_process() -> None:
    """Check that this process is not a fork of one that has asked a store; its requests would wait for ever.

    Raises:
        ValueError: If it is.
    """
    if _first_process() != os.getpid():
        raise ValueError(
            "object stores cannot be read in a forked process: start it with the method 'spawn', as "
            "DataLoader(..., multiprocessing_context='spawn') does"
        )


def split_address(address: str) -> tuple[str, str]:
    """Split an address into that of its bucket, and the name of an object or a pattern.

    Raises:
        ValueError: If it holds credentials, names no bucket, or the extra for its store is not installed.
    """
    scheme, _, path = address.partition(":")
    bucket, _, name = path.removeprefix("//").partition("/") if path.startswith("//") else ("", "", "")
    shown = repr(without_credentials(address))
    if "@" in bucket or not bucket:
        wanted = "credentials, which belong elsewhere" if bucket else "no bucket"
        raise ValueError(f"{shown} has {wanted}: give '{scheme}://BUCKET/...', and set {_HINTS[scheme]}")
    if not all(find_spec(module) for module in ("obstore", *["boto3"] * (scheme == "s3"))):
        raise ValueError(f"{shown} is in an object store: pip install 'nti-batch[{STORES[scheme]}]'")
    return f"{scheme}://{bucket}", name


async def request_object(address: str, offset: int, version: str) -> Answer:
    """Ask for an object.

    Args:
        address: Its address, such as 's3://bucket/a.tar'.
        offset: First byte that is wanted.
        version: ETag of what was read before; the store refuses if the object has another one now.

    Raises:
        RefusedError: If the store refuses the request.
        BrokenError: If there is no answer, or it asks to come again.
    """
    import obstore

    bucket, name = split_address(address)
    options: dict[str, Any] = {"range": {"offset": offset}} if offset else {}
    if version:
        options["if_match"] = version
    with _translated(address):
        # to look for credentials may take requests of its own
        store = await asyncio.to_thread(_open_to_read, bucket)
        result = await obstore.get_async(store, name, options=options)
    pieces = aiter(result.stream(min_chunk_size=1))

    async def read() -> bytes:
        with _translated(address):
            return bytes(await anext(pieces, b""))

    return Answer(offset, result.meta["size"], result.meta["e_tag"] or "", read, lambda: None)


def list_objects(pattern: str) -> list[str]:
    """Return the addresses of the objects that a glob matches, in any order.

    Raises:
        ValueError: If the store refuses, or does not answer.
    """
    import obstore
    from obstore.fsspec import FsspecStore

    bucket, names = split_address(pattern)
    scheme, _, bucket_name = bucket.partition("://")
    try:
        with _translated(bucket):
            found = FsspecStore(scheme, client_options={"allow_http": True}, **_access(scheme)).glob(
                f"{bucket_name}/{names}"
            )
            if not found:
                # a bucket that does not exist looks like an empty one to a glob
                next(obstore.list(_open_to_read(bucket), chunk_size=1), None)
    except OSError as error:
        raise ValueError(f"shards {without_credentials(pattern)!r} cannot be listed: {error}") from error
    return [f"{scheme}://{path}" for path in found]


@lru_cache(maxsize=16)
def _open_to_read(bucket: str) -> "ObjectStore":
    """Open a bucket. Retries are the caller's, who knows when the job is to stop, and so are limits of time."""
    return open_store(bucket, timeout=timedelta(days=30), retry_config={"max_retries": 0})


def open_store(address: str, timeout: timedelta, **settings: Any) -> "ObjectStore":
    """Open a bucket, or what is below an address in one.

    Args:
        address: Its address.
        timeout: Limit for a whole answer.
        settings: Settings of obstore.
    """
    from obstore.store import from_url

    scheme, client_options = address.partition(":")[0], {"allow_http": True, "timeout": timeout}
    return from_url(address, client_options=client_options, **_access(scheme), **settings)


def _access(scheme: str) -> dict[str, Any]:
    """Settings of access to a store beside those that obstore takes from the environment itself."""
    return _access_to_aws() if scheme == "s3" else {}


def _access_to_aws() -> dict[str, Any]:
    """Credentials, region and endpoint as the AWS tools find them, profiles and roles included.

    Where they find no credentials, requests are not signed, as public buckets allow.
    """
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    options: dict[str, Any] = {"region": session.region_name} if session.region_name else {}
    endpoint = session.client("s3", session.region_name or "us-east-1").meta.endpoint_url
    if not endpoint.endswith(".amazonaws.com"):
        options["endpoint"] = endpoint
    if session.get_credentials() is None:
        return options | {"skip_signature": True}
    return options | {"credential_provider": Boto3CredentialProvider(session)}


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """Turn errors of the library, which have no common class, into ours.

    Raises:
        RefusedError: In place of what another attempt would meet again.
        BrokenError: In place of the others.
    """
    from obstore.exceptions import PreconditionError

    check_process()
    try:
        yield
    except PreconditionError as error:
        raise RefusedError("the object has changed in the store while it was read") from error
    except (FileNotFoundError, ValueError) as error:
        raise RefusedError(_reason(error)) from error
    except Exception as error:
        status = _STATUS.search(str(error))
        if status[2] in _PASSING if status else "HTTP error" in str(error):
            raise BrokenError(_reason(error)) from error
        raise RefusedError(f"{_reason(error)}; access is set by {_HINTS[address.partition(':')[0]]}") from error


def _reason(error: Exception) -> str:
    """What the store says in its answer, or else the first line of a text that goes on with the library's insides."""
    text = str(error)
    if status := _STATUS.search(text):
        code = _CODE.search(text)
        return f"the store answers {status[1].strip()}" + (f", {code[1]}" if code else "")
    return first_line(error)
