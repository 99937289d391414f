"""Reads and decodes input in a background thread, while the device works."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")
_END = object()


def read_ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Iterate in a thread, `depth` items ahead; an error is raised where its item would come.

    Closing the generator ends the thread after the item that it is reading.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        waiting = deque(thread.submit(next, items, _END) for _ in range(depth))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(thread.submit(next, items, _END))
            yield cast(T, item)
    finally:
        thread.shutdown(cancel_futures=True)
