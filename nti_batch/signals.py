"""Stopping when the scheduler asks: a flag that the job looks at, and nothing that could hang."""

import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nti_batch.module import NullTextInversion

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopOnSignal(Callback):
    """Sets `stop_requested` on a signal; the pool drops what is in flight and finished images are committed.

    Lightning's own handlers save a checkpoint of the model, wait for other ranks that may be anywhere, or swallow
    the signal. They are set between `setup` and `on_predict_start`, and taken back before `teardown`.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._before: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the handlers of whoever started the job."""
        self._before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals."""
        assert isinstance(pl_module, NullTextInversion)
        job, launcher = pl_module, trainer.strategy.launcher

        def stop(signum: int, frame: FrameType | None) -> None:
            job.stop_requested = True
            # ranks that this process started on its own do not get what a scheduler sends to it
            for process in getattr(launcher, "procs", []):
                process.send_signal(signum)

        for signum in STOP_SIGNALS:
            signal.signal(signum, stop)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back, now that everything is committed."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
