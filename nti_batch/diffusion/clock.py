"""Measures the time of blocks of code on a device, without waiting for it between them."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

HOST = torch.device("cpu")


class DeviceClock:
    """Adds up the time that blocks of code take on a device."""

    def __init__(self, device: torch.device = HOST) -> None:
        """Start at zero."""
        self.device = device
        self.finished_seconds = 0.0
        """Time of the blocks that the device is known to have finished. Any thread may read it."""

        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a `with` block; all blocks are of one thread."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
            self._add_finished()
        else:
            since = time.perf_counter()
            yield
            self.finished_seconds += time.perf_counter() - since

    def _add_finished(self) -> None:
        """Add the blocks at the front whose end the device has reached."""
        while self._events and self._events[0][1].query():
            start, end = self._events.popleft()
            self.finished_seconds += start.elapsed_time(end) / 1000

    @property
    def seconds(self) -> float:
        """Time of all blocks; waits for a GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._add_finished()
        return self.finished_seconds
