"""Stopping when the scheduler asks: a flag that the job looks at, and nothing that could hang."""

import signal
import subprocess
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """Notes that a stop was asked for; the pool then drops what is in flight and finished images are committed.

    In a `with` block, from the first moment: a signal while the weights are loaded is not lost. SIGINT is left to
    Python until `take_all`, so that Ctrl-C ends a download.
    """

    def __init__(self) -> None:
        """Leave all handlers as they are."""
        self.requested = False
        self.children: Callable[[], Iterable[subprocess.Popen[bytes]]] = lambda: ()
        """Ranks that this process started: they do not get what a scheduler sends to it."""

        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Take over what schedulers send."""
        self._before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
        self._take(signum for signum in STOP_SIGNALS if signum != signal.SIGINT)
        return self

    def take_all(self) -> None:
        """Take over the signals (again): to be called once the prediction has started.

        Lightning's own handlers, which it sets shortly before, save a checkpoint of the model, wait for other ranks
        that may be anywhere, or swallow the signal. For SIGUSR1 it sets none where it finds one.
        """
        if self._before:
            self._take(STOP_SIGNALS)

    def leave_interrupt(self) -> None:
        """Give SIGINT back: all is committed, Ctrl-C may end what follows; what a scheduler sends must not."""
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def __exit__(self, *error: object) -> None:
        """Give the signals back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _take(self, signals: Iterable[int]) -> None:
        for signum in signals:
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        for process in self.children():
            process.send_signal(signum)
