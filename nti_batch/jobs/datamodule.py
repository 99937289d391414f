"""Feeds the missing records of a rank's work units to the prediction loop."""

from collections.abc import Generator, Iterator
from itertools import takewhile

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nti_batch.jobs.ranks import JobPart
from nti_batch.jobs.read_ahead import read_ahead
from nti_batch.jobs.signals import StopSignals
from nti_batch.jobs.units import TAKEN_FILE, RankUnits, TakenUnits, read_units
from nti_batch.plans.plan import AnyPlan

ITEMS_AHEAD = 8
"""Items that are read before they are asked for. An inversion to edit may have 32 MB."""


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
        self._records: _MissingRecords | None = None

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Leave the record on the CPU: the networks move its tensors."""
        return batch

    def predict_dataloader(self) -> "DataLoader[object]":
        """A loader with one record a batch: the modules make their own batches.

        All ranks call this at the same time, and none continues before all have returned.
        """
        assert self.trainer is not None
        taken = TakenUnits.of_job(self.plan.run.out / TAKEN_FILE, self.trainer)
        self.units = RankUnits(self.plan, self.part, self.trainer.global_rank, self.trainer.world_size, taken)
        self.units.take_first(lambda: self.stop.requested)
        self._records = _MissingRecords(self.plan, self.units, self.stop)
        return DataLoader(self._records, batch_size=None)

    def close(self) -> None:
        """End the reading: no work unit is claimed any more."""
        if self._records:
            self._records.close()


class _MissingRecords(IterableDataset[object]):
    """Missing records of work units, each unit claimed before it is read."""

    def __init__(self, plan: AnyPlan, units: RankUnits, stop: StopSignals) -> None:
        self.plan, self.units, self.stop = plan, units, stop
        self._is_closed = False
        self._ahead: Generator[object, None, None] | None = None

    def __iter__(self) -> Iterator[object]:
        claimed = self.units.claim(self._is_stopped)
        self._ahead = read_ahead(read_units(self.plan, claimed, self._is_stopped), ITEMS_AHEAD)
        return takewhile(lambda item: not self._is_stopped(), self._ahead)

    def _is_stopped(self) -> bool:
        return self.stop.requested or self._is_closed

    def close(self) -> None:
        self._is_closed = True
        if self._ahead:
            self._ahead.close()
