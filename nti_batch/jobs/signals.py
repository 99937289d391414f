"""Stop signals: a flag that the job reads between two UNet evaluations. Nothing here can hang."""

import signal
import subprocess
import threading
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer

from nti_batch.jobs.ranks import started_ranks

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """Records that a stop was requested: the job then drops the images in flight and commits the finished ones.

    The `with` block covers the whole command, so that a signal during the loading of weights is not lost. SIGINT keeps
    Python's handler until `handle_all`, so that Ctrl-C ends a download.
    """

    def __init__(self) -> None:
        """Leave all handlers as they are."""
        self.requested = False
        self._previous: dict[int, Any] = {}
        self._processes: Sequence[subprocess.Popen[bytes]] = ()

    def __enter__(self) -> Self:
        """Install handlers for the signals that schedulers send."""
        self._previous = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
        self._handle(signum for signum in STOP_SIGNALS if signum != signal.SIGINT)
        return self

    def handle_all(self, ranks: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        """Install all handlers (again), once the prediction has started.

        Shortly before, Lightning installs handlers that save a checkpoint of the model, wait for other ranks that may
        be anywhere, or ignore the signal. For SIGUSR1 it installs none if there is one.

        Args:
            ranks: Processes that this one has started, as for `forward_to`.
        """
        self.forward_to(ranks)
        if self._previous:
            self._handle(STOP_SIGNALS)

    def forward_to(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Pass the signals that a scheduler sends to this process on to processes that it has started."""
        self._processes = processes

    def release_interrupt(self) -> None:
        """Give SIGINT back to Python. All records are committed: Ctrl-C may end what follows, a scheduler may not."""
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    def request(self) -> None:
        """Request a stop of this process."""
        self.requested = True

    def __exit__(self, *error: object) -> None:
        """Restore the handlers."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _handle(self, signals: Iterable[int]) -> None:
        for signum in signals:
            signal.signal(signum, self._request)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.request()
        for process in self._processes:
            process.send_signal(signum)


class SignalCallback(Callback):
    """Installs the signal handlers after Lightning has installed its own, and requests a stop after a time."""

    def __init__(self, stop: StopSignals, stop_after: float | None = None) -> None:
        """Take the signals of the job, and the minutes after which the prediction stops."""
        self.stop = stop
        self.timer = None if stop_after is None else threading.Timer(60 * stop_after, stop.request)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self.stop.handle_all(started_ranks(trainer))
        if self.timer:
            self.timer.daemon = True
            self.timer.start()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Request no stop any more."""
        if self.timer:
            self.timer.cancel()
