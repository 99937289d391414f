"""Where the time and the memory of a rank go, and what waits in it."""

from dataclasses import dataclass
from pathlib import Path
from resource import getpagesize

import torch

from nti_batch.diffusion.clock import DeviceClock
from nti_batch.jobs.datamodule import JobDataModule
from nti_batch.jobs.job_module import JobModule
from nti_batch.jobs.tally import Tally
from nti_batch.jobs.writer import RecordWriter

STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class RankNumbers:
    """Numbers of a rank since its start. Any thread may ask: nothing here waits for the device, or for another."""

    module: JobModule
    data: JobDataModule
    writer: RecordWriter

    @property
    def tally(self) -> Tally:
        """Records that this rank has written."""
        return self.writer.tally

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of each stage. 'read' and 'write' are threads of the host, which work beside the device."""
        clocks: dict[str, DeviceClock] = {"read": self.data.clock, **self.module.clocks, "write": self.writer.clock}
        return {stage: clock.finished_seconds for stage, clock in clocks.items()}

    def queue_lengths(self) -> dict[str, int]:
        """Records in each queue, of which 'read_ahead' is the first, and 'write' the last."""
        return {"read_ahead": self.data.waiting, **self.module.queue_lengths(), "write": self.writer.waiting}

    def device_busy_ratio(self) -> float:
        """Share of the time in which the device has had something to do."""
        return self.module.device_busy_ratio()

    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the process in main memory (on Linux), and of its tensors on a GPU, now and at their peak."""
        found = {}
        if STATM.exists():
            found["host"] = int(STATM.read_text().split()[1]) * getpagesize()
        if (device := self.module.device).type == "cuda":
            now, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
            found |= {"device": now, "device_peak": peak}
        return found

    def metrics(self) -> dict[str, float]:
        """The numbers for Lightning's loggers: seconds are those of an image."""
        records = max(1, self.tally.processed)
        return {
            **{f"{stage}_seconds": seconds / records for stage, seconds in self.stage_seconds().items()},
            **{f"{queue}_queue": float(length) for queue, length in self.queue_lengths().items()},
            **{f"{where}_memory_bytes": float(size) for where, size in self.memory_bytes().items()},
            "device_busy_ratio": self.device_busy_ratio(),
        }
