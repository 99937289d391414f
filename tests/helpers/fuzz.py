"""A shard to mutate, and limits on the time and memory of a test's body."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.tars import END, sample

KEYS = ["a", "bb", "ccc", "dddd", "eeeee"]
SHARD = b"".join(map(sample, KEYS)) + END


@contextmanager
def bounded(seconds: float = 20, megabytes: int = 400) -> Iterator[None]:
    """Fail if the body hangs, or takes much memory."""

    def hangs(*_: object) -> None:
        raise AssertionError("this hangs")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes * 1024
