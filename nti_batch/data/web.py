"""Asks for files by HTTP."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from http import HTTPStatus

import aiohttp
from fsspec.asyn import get_loop
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from nti_batch.data.answer import Answer, BrokenError, RefusedError, first_line

CONNECT_TIMEOUT = 30.0
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
"""Refusals that another attempt may not meet, beside the errors of the server (5xx)."""


async def request_url(url: str, offset: int, version: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Ask for the file behind a url; proxies and ~/.netrc are observed as the environment says.

    Args:
        url: The url; it may hold a user and a password.
        offset: First byte that is wanted.
        version: Version of what was read before; a server that sends another one shows it in its answer.
        headers: More headers of the request.

    Raises:
        RefusedError: If the server refuses the request.
        BrokenError: If there is no answer, or it asks to come again.
    """
    wanted = {**(headers or {}), "Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    async with _translated():
        session: aiohttp.ClientSession = await _file_system().set_session()
        # a url may be signed, so what is well-formed goes out as it is
        response = await session.get(URL(url, encoded=url.isascii() and " " not in url), headers=wanted)
    try:
        start, size = _range(response)
    except OSError:
        response.close()
        raise
    tag: str = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return Answer(start, size, tag, lambda: _read(response), lambda: _close(response))


@lru_cache(maxsize=1)
def _file_system() -> HTTPFileSystem:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)
    return HTTPFileSystem(client_kwargs={"timeout": timeout, "trust_env": True, "auto_decompress": False})


def _range(response: aiohttp.ClientResponse) -> tuple[int, int | None]:
    """Return the offset of the first byte that comes, and the size of the whole file."""
    if response.status == HTTPStatus.OK:
        return 0, response.content_length
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if found is None:
            raise RefusedError("the server answers with a part of the file, but does not say which")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise RefusedError("the file has become shorter on the server while it was read")
    reason = f"the server answers {response.status} {response.reason or ''}".rstrip()
    if response.status in _PASSING or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        pause = response.headers.get("Retry-After", "")
        raise BrokenError(reason, float(pause) if pause.isdecimal() else 0.0)
    raise RefusedError(reason)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    async with _translated():
        try:
            return await response.content.readany()
        except (aiohttp.ClientError, OSError):
            # aiohttp's readers drop what came right before a cut, without which a cut each few kilobytes gets nowhere
            if data := response.content._read_nowait(-1):
                return data
            raise


def _close(response: aiohttp.ClientResponse) -> None:
    get_loop().call_soon_threadsafe(response.close)


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Turn errors of the HTTP library into ours.

    Raises:
        RefusedError: In place of what another attempt would meet again.
        BrokenError: In place of the others.
    """
    try:
        yield
    except aiohttp.ClientConnectorDNSError as error:
        raise BrokenError("the host is not found") from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise RefusedError("the certificate of the host is not trusted") from error
    except (aiohttp.ClientConnectorError, TimeoutError) as error:
        raise BrokenError("the host does not answer") from error
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, OSError) as error:
        raise BrokenError("the connection was cut") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise RefusedError(f"the url cannot be fetched: {first_line(error)}") from error
