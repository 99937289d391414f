"""Feeds the missing records of a rank's work units to the prediction loop."""

from collections.abc import Generator, Iterator
from itertools import takewhile

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nti_batch.diffusion.clock import DeviceClock
from nti_batch.jobs.ranks import JobPart
from nti_batch.jobs.read_ahead import read_ahead
from nti_batch.jobs.signals import StopSignals
from nti_batch.jobs.units import RankUnits, TakenUnits, read_units
from nti_batch.plans.plan import AnyPlan

ITEMS_AHEAD = 8
"""Items that are read before they are asked for. An inversion to edit may have 32 MB."""

_END = object()


class JobDataModule(LightningDataModule):
    """The input of a job."""

    units: RankUnits
    """Work units of this rank, once the prediction has started."""

    def __init__(self, plan: AnyPlan, part: JobPart, stop: StopSignals) -> None:
        """Take the work of the run.

        Args:
            plan: Work units and their missing records.
            part: This job's part of the work units.
            stop: Stop signals, which end the input early.
        """
        super().__init__()
        self.plan, self.part, self.stop = plan, part, stop
        self.clock = DeviceClock()
        """Time of claiming, reading and decoding."""

        self._records: _MissingRecords | None = None

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Leave the record on the CPU: the networks move its tensors."""
        return batch

    def predict_dataloader(self) -> "DataLoader[object]":
        """A loader with one record a batch: the modules make their own batches.

        All ranks call this at the same time, and none continues before all have returned.
        """
        assert self.trainer is not None
        taken = TakenUnits.of_job(self.plan.run, self.trainer)
        self.units = RankUnits(self.plan, self.part, self.trainer.global_rank, self.trainer.world_size, taken)
        self.units.take_first(lambda: self.stop.requested)
        self._records = _MissingRecords(self.plan, self.units, self.stop, self.clock)
        return DataLoader(self._records, batch_size=None)

    @property
    def waiting(self) -> int:
        """Records that are read and not yet asked for."""
        return self._records.read - self._records.taken if self._records else 0

    def close(self) -> None:
        """End the reading: no work unit is claimed any more."""
        if self._records:
            self._records.close()


class _MissingRecords(IterableDataset[object]):
    """Missing records of work units, each unit claimed before it is read."""

    def __init__(self, plan: AnyPlan, units: RankUnits, stop: StopSignals, clock: DeviceClock) -> None:
        self.plan, self.units, self.stop, self.clock = plan, units, stop, clock
        self.read = self.taken = 0
        self._is_closed = False
        self._ahead: Generator[object, None, None] | None = None

    def __iter__(self) -> Iterator[object]:
        self._ahead = read_ahead(self._read(), ITEMS_AHEAD)
        for item in takewhile(lambda item: not self._is_stopped(), self._ahead):
            self.taken += 1
            yield item

    def _read(self) -> Iterator[object]:
        """The records, in the thread that reads them."""
        records = read_units(self.plan, self.units.claim(self._is_stopped), self._is_stopped)
        while True:
            with self.clock.running():
                record = next(records, _END)
            if record is _END:
                return
            self.read += 1
            yield record

    def _is_stopped(self) -> bool:
        return self.stop.requested or self._is_closed

    def close(self) -> None:
        self._is_closed = True
        if self._ahead:
            self._ahead.close()
