"""Input is read in a thread, in its order, with its errors in their places."""

import threading
import time
from collections.abc import Iterator
from itertools import count

import pytest

from nti_batch.jobs.read_ahead import read_ahead


def test_items_come_in_their_order_and_only_so_many_are_read_ahead():
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            read.append(i)
            yield i

    ahead = read_ahead(items(), depth=3)
    assert next(ahead) == 0
    deadline = time.monotonic() + 60
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert read == [0, 1, 2, 3]
    assert list(ahead) == list(range(1, 20))


def test_an_item_is_read_while_the_one_before_is_in_use():
    in_use, seen = threading.Event(), []

    def items() -> Iterator[int]:
        yield 0
        seen.append(in_use.wait(60))
        yield 1

    ahead = read_ahead(items(), depth=1)
    assert next(ahead) == 0
    in_use.set()
    assert list(ahead) == [1]
    assert seen == [True]


def test_an_error_comes_after_the_items_before_it():
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the shard is gone")

    ahead = read_ahead(items(), depth=5)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="the shard is gone"):
        next(ahead)


def test_no_thread_is_left_after_the_last_item_or_a_close():
    before = threading.active_count()
    assert list(read_ahead(iter("abc"), depth=2)) == ["a", "b", "c"]
    ahead = read_ahead(count(), depth=2)
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == before
