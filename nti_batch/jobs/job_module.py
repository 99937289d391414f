"""What the LightningModules of both jobs have in common: clocks of their stages, and queues."""

import time
from typing import Self

from lightning.pytorch import LightningModule

from nti_batch.diffusion.clock import DeviceClock
from nti_batch.models.stable_diffusion import StableDiffusion


class JobModule(LightningModule):
    """The module of a job."""

    networks: StableDiffusion

    def __init__(self) -> None:
        """Start no clock."""
        super().__init__()
        self.clocks: dict[str, DeviceClock] = {}
        """Time of the device by stage."""

        self.warm_up_seconds: float | None = None
        """Time that the first calls took, in which the UNet is compiled; None before them."""

        self._started: float | None = None

    def cpu(self) -> Self:
        """Stay on the device: the Trainer calls this at the end, and the preview needs the networks there."""
        return self

    def start_clocks(self, **clocks: DeviceClock) -> None:
        """Start the time of the prediction, with clocks that others run."""
        self.clocks |= clocks
        self._started = time.monotonic()

    def clock(self, stage: str) -> DeviceClock:
        """The clock of a stage."""
        return self.clocks.setdefault(stage, DeviceClock(self.networks.device))

    def device_busy_ratio(self) -> float:
        """Share of the time since the start in which the device has had something to do, without compiling."""
        if self._started is None:
            return 0.0
        seconds = time.monotonic() - self._started - (self.warm_up_seconds or 0.0)
        busy = sum(clock.finished_seconds for clock in list(self.clocks.values()))
        return min(1.0, busy / seconds) if seconds > 0 else 0.0

    def queue_lengths(self) -> dict[str, int]:
        """Images in each queue of the module."""
        raise NotImplementedError
