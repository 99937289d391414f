"""One rank among several: its share of the work units, and the processes that it has started."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lightning.pytorch import Trainer

from nti_batch.records import WorkUnit


@dataclass(frozen=True, slots=True)
class JobPart:
    """Part `index` of `count` of a run's work units, for one of several jobs that share an output folder."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read 'K/N'; None is the whole run.

        Raises:
            ValueError: If the text is something else.
        """
        if text is None:
            return cls()
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(f"data.part is {text!r}, allowed: 'K/N' with K = 0 to N - 1, for example '0/4'")
        return cls(int(index), int(count))

    def units(self, units: Sequence[WorkUnit], rank: int, ranks: int) -> list[WorkUnit]:
        """The work units of a rank: every `ranks`-th of this job's part."""
        return list(units[self.index :: self.count][rank::ranks])

    def queue(self, units: Sequence[WorkUnit], rank: int, ranks: int) -> tuple[list[WorkUnit], list[WorkUnit]]:
        """The work units of a rank, and those of the others from the last on, since each rank begins at its first."""
        of_job = self.units(units, 0, 1)
        others = [unit for index, unit in enumerate(of_job) if index % ranks != rank]
        return of_job[rank::ranks], others[::-1]

    def file(self, out: Path, rank: int, suffix: str) -> Path:
        """The file in which a rank of this job writes about itself."""
        job = f"part-{self.index}of{self.count}." if self.count > 1 else ""
        return out / "log" / f"{job}rank-{rank}{suffix}"


def started_ranks(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    """Processes of the ranks that this process has started."""
    return getattr(trainer.strategy.launcher, "procs", [])
