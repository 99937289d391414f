"""Which work units this rank streams."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nti_batch.jobs.failure_limit import FailureLimit
from nti_batch.output.manifest import Row
from nti_batch.output.run import OutputRun
from nti_batch.output.status import Status
from nti_batch.records import WorkUnit

Run = TypeVar("Run", bound=OutputRun[Any, Any])


class UnitDataModule(LightningDataModule, ABC, Generic[Run]):
    """Work units, and what of them each rank reads."""

    units: list[WorkUnit]

    def __init__(
        self, part: str | None = None, max_failures: int | str | None = None, retry_failed: bool = False
    ) -> None:
        """Settings that all jobs have.

        Args:
            part: 'K/N' for one of N jobs, K = 0 to N - 1, that share the work units of one output folder.
            max_failures: The job ends when more of the images that a rank has taken in have failed: a count, or a
                share such as '5%', which is judged from the hundredth image on; null goes on whatever fails.
            retry_failed: Try again what earlier jobs committed as failed.
        """
        super().__init__()
        self.part, self.parts = _job_part(part)
        self.failure_limit = None if max_failures is None else FailureLimit.parse(str(max_failures))
        self.retry_failed = retry_failed
        self.run: Run | None = None
        self.stop_requested: Callable[[], bool] = lambda: False

    @abstractmethod
    def is_waiting(self, unit: WorkUnit) -> bool:
        """Whether there is something to do in a work unit."""

    @abstractmethod
    def read(self, unit: WorkUnit, rows: Sequence[Row]) -> Iterator[object]:
        """What is to be done in a work unit of which these rows are committed, closed by a `EndOfUnit`."""

    @abstractmethod
    def estimate(self, units: list[WorkUnit]) -> int | None:
        """About how many records these work units have before them; None if nobody knows."""

    @abstractmethod
    def status(self, units: Sequence[WorkUnit]) -> Status:
        """How far they are."""

    def units_of_run(self) -> list[WorkUnit]:
        """Those of all jobs on the output folder."""
        return self.units

    def units_of(self, rank: int, world_size: int) -> list[WorkUnit]:
        """The work units of a rank: every `world_size`-th of this job's part."""
        return self.units[self.part :: self.parts][rank::world_size]

    def claim(self, unit: WorkUnit) -> Sequence[Row]:
        """Make a work unit this process's own, with what a dead job left; return what is committed."""
        assert self.run is not None, "attach() comes first"
        self.run.lock(unit)
        self.run.salvage(unit)
        if self.retry_failed:
            self.run.forget_failures(unit)
        return self.run.rows(unit)

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Leave the record as it is: only its tensors travel, and the networks fetch them."""
        return batch

    def predict_dataloader(self) -> "DataLoader[object]":
        """One item a batch: the modules make their own batches."""
        assert self.trainer is not None
        return DataLoader(ItemStream(self, self.units_of(self.trainer.global_rank, self.trainer.world_size)), None)


class ItemStream(IterableDataset[object]):
    """What is not committed yet of some work units."""

    def __init__(self, data: UnitDataModule[Any], units: list[WorkUnit]) -> None:
        """Remember what to read."""
        self.data, self.units = data, units

    def __iter__(self) -> Iterator[object]:
        """Read unit after unit, until the end or until a stop is requested."""
        for unit in self.units:
            if self.data.is_waiting(unit):
                for item in self.data.read(unit, self.data.claim(unit)):
                    if self.data.stop_requested():
                        return
                    yield item


def _job_part(part: str | None) -> tuple[int, int]:
    if part is None:
        return 0, 1
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"data.part is {part!r}, allowed: 'K/N' with K = 0 to N - 1, for example '0/4'")
    return int(index), int(count)
