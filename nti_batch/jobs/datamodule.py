"""Feeds the missing records of a rank's work units to the prediction loop."""

from collections.abc import Iterator

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nti_batch.jobs.ranks import JobPart, claim_units, read_units
from nti_batch.jobs.signals import StopSignals
from nti_batch.plans.plan import AnyPlan
from nti_batch.records import WorkUnit


class JobDataModule(LightningDataModule):
    """The input of a job."""

    def __init__(self, plan: AnyPlan, part: JobPart, stop: StopSignals) -> None:
        """Take the work of the run.

        Args:
            plan: Work units and their missing records.
            part: This job's part of the work units.
            stop: Stop signals, which end the input early.
        """
        super().__init__()
        self.plan, self.part, self.stop = plan, part, stop

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Leave the record on the CPU: the networks move its tensors."""
        return batch

    def predict_dataloader(self) -> "DataLoader[object]":
        """A loader with one record a batch: the modules make their own batches."""
        assert self.trainer is not None
        units = self.part.units(self.plan.units, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(_MissingRecords(self.plan, units, self.stop), batch_size=None)


class _MissingRecords(IterableDataset[object]):
    """Missing records of work units, each unit claimed before it is read."""

    def __init__(self, plan: AnyPlan, units: list[WorkUnit], stop: StopSignals) -> None:
        self.plan, self.units, self.stop = plan, units, stop

    def __iter__(self) -> Iterator[object]:
        claimed = claim_units(self.plan, self.units)
        return read_units(self.plan, claimed, lambda: self.stop.requested)
