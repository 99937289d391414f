"""Numbers of a run's rows, a few floats a record, and the figures that charts show."""

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, nan, sqrt
from pathlib import Path
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from nti_batch.output.manifest import Manifest
from nti_batch.output.manifest_rows import AnyRow, Row, member_name
from nti_batch.output.part import DAMAGE, read_metadata

Numbers = NDArray[np.float64]


MAX_BINS = 40


MAX_REASONS = 100


_DETAILS = re.compile(r"""(?<!\w)'[^']*'|"[^"]*"|\S*/\S*|\w*\d\w*(?:\.\w+)*""")
"""Parts that differ between errors of one reason: quotations, paths, and words with a digit."""


@dataclass(slots=True)
class Reason:
    """Failures with the same stage and, apart from names and numbers, the same error."""

    stage: str
    reason: str
    """The error, with an ellipsis for each name and number."""

    example: str
    """'shard/key' of the first failure, or the shard that failed as a whole."""

    error: str
    """Error of that failure."""

    count: int = 0


@dataclass(slots=True)
class Reasons:
    """Failures by stage and reason. A damaged shard counts once, whatever the number of its rows."""

    groups: dict[tuple[str, str], Reason] = field(default_factory=dict)
    damaged_shards: set[str] = field(default_factory=set)

    def add(self, row: Row) -> None:
        """Count a failed row; reasons beyond the first hundred are counted together."""
        if not row.key:
            if row.shard in self.damaged_shards:
                return
            self.damaged_shards.add(row.shard)
        group = row.stage, _DETAILS.sub("…", row.error)
        if group not in self.groups and len(self.groups) >= MAX_REASONS:
            group = row.stage, "other reasons"
        example = f"{row.shard}/{row.key}" if row.key else row.shard
        self.groups.setdefault(group, Reason(*group, example, row.error)).count += 1

    def sorted(self) -> list[Reason]:
        """Reasons, the most frequent first."""
        return sorted(self.groups.values(), key=lambda group: -group.count)


class RunNumbers(Generic[AnyRow]):
    """Columns of numbers with an entry for each finished record, in the order of the manifests."""

    def __init__(self, row_type: type[AnyRow], columns: Sequence[str]) -> None:
        """Start without records.

        Args:
            row_type: Rows of the run.
            columns: Fields of a row; None becomes nan.
        """
        self.row_type = row_type
        self.reasons = Reasons()
        self._columns = {name: array("d") for name in ("finished", "seconds", *columns)}
        self._manifests: list[Path] = []
        self._firsts: list[int] = []
        """Entry of the first record of each manifest."""

    def add(self, manifest: Path, row: AnyRow) -> None:
        """Count a row of a manifest."""
        if row.status == "failed":
            self.reasons.add(row)
            return
        if not self._manifests or self._manifests[-1] != manifest:
            self._manifests.append(manifest)
            self._firsts.append(len(self))
        for name, column in self._columns.items():
            value = getattr(row, name)
            column.append(nan if value is None else value)

    def __len__(self) -> int:
        """Number of finished records."""
        return len(self._columns["finished"])

    def __getitem__(self, name: str) -> Numbers:
        """A column."""
        return np.array(self._columns[name])

    def find(self, entries: Iterable[int]) -> list[tuple[Path, AnyRow]]:
        """The rows of these entries, each with its manifest.

        Raises:
            ValueError: If a manifest is damaged.
        """
        found = []
        for entry in entries:
            number = bisect_right(self._firsts, entry) - 1
            path = self._manifests[number]
            # another process may remove failed rows; finished ones stay
            done = [row for row in Manifest.read(path, self.row_type).rows if row.status == "done"]
            found.append((path, done[entry - self._firsts[number]]))
        return found

    def sample(self, count: int) -> list[int]:
        """At most `count` entries, drawn without replacement; the same ones for the same number of records."""
        chosen = np.random.default_rng(0).choice(len(self), min(count, len(self)), replace=False)
        return sorted(chosen.tolist())


def extremes(values: Numbers, count: int) -> dict[str, list[int]]:
    """Entries of the lowest values, of those about the median, and of the highest, each once.

    Args:
        values: Higher is better; all finite.
        count: Maximum number of entries of each kind.
    """
    order = np.argsort(values, kind="stable").tolist()
    middle = max(0, len(order) - count) // 2
    kinds = {"worst": order[:count], "median": order[middle : middle + count], "best": order[::-1][:count]}
    shown: set[int] = set()
    found = {}
    for name, entries in kinds.items():
        found[name] = [entry for entry in entries if entry not in shown]
        shown.update(entries)
    return {name: entries for name, entries in found.items() if entries}


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts between edges; the outer ones include values beyond the edges."""

    edges: Numbers
    """[bins + 1]."""

    counts: NDArray[np.int64]
    """[bins]."""


def histogram(values: Numbers) -> Histogram:
    """Numpy's choice of bins over all but the outermost half percent on each side, at most `MAX_BINS`.

    Whole numbers get bins of whole widths.
    """
    low, high = np.quantile(values, [0.005, 0.995], method="nearest")
    inside = np.clip(values, low, high)
    bins = min(MAX_BINS, len(np.histogram_bin_edges(inside, "auto")) - 1)
    if (values == np.round(values)).all():
        width = ceil((high - low + 1) / bins)
        edges = low - 0.5 + width * np.arange(ceil((high - low + 1) / width) + 1.0)
    else:
        edges = np.histogram_bin_edges(inside, bins)
    counts, _ = np.histogram(inside, edges)
    return Histogram(edges, counts)


def throughput(finished: Numbers, seconds: Numbers) -> Histogram:
    """Number of records that finished in equal intervals of time, from the start of the first.

    Args:
        finished: Times in seconds since 1970.
        seconds: Duration of each record; nan if it is unknown.
    """
    begin = np.min(finished - np.nan_to_num(seconds))
    bins = min(MAX_BINS, ceil(sqrt(len(finished))))
    counts, edges = np.histogram(finished, bins, (begin, finished.max()))
    return Histogram(edges, counts)


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Distribution of a value over a sample of images at each timestep."""

    timesteps: Numbers
    """Timesteps of the network, the noisiest first, [T]."""

    low: Numbers
    """10 % of the images are below it, [T]."""

    median: Numbers
    high: Numbers
    """10 % of the images are above it, [T]."""


def by_timestep(timesteps: Numbers, values: Numbers) -> Curve:
    """The distribution of the values of at least one image, [images, T]."""
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
    return Curve(timesteps, low, median, high)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Values that only the `.json` members of inversions hold."""

    timesteps: Numbers
    """Timesteps of the network, the noisiest first, [T]."""

    losses: Numbers
    """[images, T]."""

    inner_steps: Numbers
    """[images, T]."""

    errors: list[str]
    """Errors of the parts that cannot be read."""


def read_sample(rows: Iterable[tuple[Path, Row]], num_steps: int) -> Sample:
    """Read a sample of inversions.

    Args:
        rows: Rows, each with its manifest.
        num_steps: Number of timesteps, T.
    """
    found: list[Numbers] = []
    errors: list[str] = []
    names: dict[Path, set[str]] = {}
    for manifest, row in rows:
        names.setdefault(manifest.with_suffix(".tar"), set()).add(member_name(row.key))
    for part, wanted in names.items():
        try:
            for metadata in read_metadata(part, wanted):
                lists = [metadata[name] for name in ("timesteps", "losses", "inner_steps")]
                # the checksum covers the whole member
                found.append(np.array(lists, dtype=np.float64).reshape(3, num_steps))
        except DAMAGE as error:
            errors.append(f"{part} is damaged: {error!r}")
    timesteps, losses, inner_steps = np.array(found).reshape(-1, 3, num_steps).transpose(1, 0, 2)
    return Sample(timesteps[:1].ravel(), losses, inner_steps, errors)
