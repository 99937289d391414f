"""Files of the Hugging Face hub, with the token that the hub's own tools have stored or HF_TOKEN names."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from nti_batch.data.answer import Answer, BrokenError, RefusedError, first_line
from nti_batch.data.web import request_url


async def request_from_hub(address: str, offset: int, version: str) -> Answer:
    """Ask for a file under the url that it has on the hub; the arguments are those of `request_url`.

    Args:
        address: Its address, such as 'hf://datasets/user/name/a.tar'.
        offset: First byte that is wanted.
        version: Version of what was read before.

    Raises:
        RefusedError: If the hub refuses the request.
        BrokenError: If there is no answer, or it asks to come again.
    """
    from huggingface_hub import HfFileSystem, get_token

    with _translated():
        url = await asyncio.to_thread(HfFileSystem().url, address)
        token = await asyncio.to_thread(get_token)
    return await request_url(url, offset, version, {"Authorization": f"Bearer {token}"} if token else {})


def list_hub(pattern: str) -> list[str]:
    """Return the addresses of the files that a glob matches, in any order.

    Raises:
        ValueError: If the hub refuses, or does not answer.
    """
    from huggingface_hub import HfFileSystem

    try:
        with _translated():
            return [f"hf://{path}" for path in HfFileSystem().glob(pattern)]
    except OSError as error:
        raise ValueError(f"shards {pattern!r} cannot be listed: {error}") from error


@contextmanager
def _translated() -> Iterator[None]:
    """Turn errors of the hub's library and of the HTTP library below it, which have no common class, into ours.

    Raises:
        RefusedError: If there is no such file, or not for this token.
        BrokenError: In place of other errors.
    """
    try:
        yield
    except (FileNotFoundError, ValueError, NotImplementedError) as error:
        raise RefusedError(f"the hub has no such file, or not for this token: {first_line(error)}") from error
    except Exception as error:
        raise BrokenError(f"the hub does not answer: {first_line(error)}") from error
