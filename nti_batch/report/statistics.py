"""Collects numbers of a run's rows, a few floats a record, and computes the figures of the charts."""

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, nan, sqrt
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from nti_batch.output.manifest_rows import AnyRow, Row, member_name
from nti_batch.output.part import DAMAGE, read_metadata
from nti_batch.output.stored_part import Located, StoredPart

Numbers = NDArray[np.float64]


MAX_BINS = 40


MAX_REASONS = 100


_DETAILS = re.compile(r"""(?<!\w)'[^']*'|"[^"]*"|\S*/\S*|\w*\d\w*(?:\.\w+)*""")
"""Parts that vary between errors with the same reason: quotations, paths, and words with a digit."""


@dataclass(slots=True)
class Reason:
    """Failures with the same stage and the same error, apart from names and numbers."""

    stage: str
    reason: str
    """Error with an ellipsis for each name and number."""

    example: str
    """'shard/key' of the first failure, or the name of a shard that failed as a whole."""

    error: str
    """Full error of the first failure."""

    count: int = 0
    """Number of failures."""


@dataclass(slots=True)
class Reasons:
    """Failures by stage and reason. A damaged shard counts once, even if several rows report it."""

    groups: dict[tuple[str, str], Reason] = field(default_factory=dict)
    damaged_shards: set[str] = field(default_factory=set)

    def add(self, row: Row) -> None:
        """Count a failed row. Reasons after the first `MAX_REASONS` count as 'other reasons'."""
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
        """Return the reasons, the most frequent first."""
        return sorted(self.groups.values(), key=lambda group: -group.count)


class RunNumbers(Generic[AnyRow]):
    """Columns of numbers that have an entry for each finished record, in the order of the manifests."""

    def __init__(self, row_type: type[AnyRow], columns: Sequence[str]) -> None:
        """Start without records.

        Args:
            row_type: Type of the run's rows.
            columns: Names of the fields to collect; a value of None becomes nan.
        """
        self.row_type = row_type
        self.reasons = Reasons()
        self._columns = {name: array("d") for name in ("finished", "seconds", *columns)}
        self._parts: list[StoredPart[AnyRow]] = []
        self._firsts: list[int] = []
        """Entry of the first finished record of each part."""

    def add(self, part: StoredPart[AnyRow], row: AnyRow) -> None:
        """Add a row of a part."""
        if row.status == "failed":
            self.reasons.add(row)
        if row.status != "done":
            return
        if not self._parts or self._parts[-1] != part:
            self._parts.append(part)
            self._firsts.append(len(self))
        for name, column in self._columns.items():
            value = getattr(row, name)
            column.append(nan if value is None else value)

    def __len__(self) -> int:
        """Return the number of finished records."""
        return len(self._columns["finished"])

    def __getitem__(self, name: str) -> Numbers:
        """Return a column by its name, [records]."""
        return np.array(self._columns[name])

    def find(self, entries: Iterable[int]) -> list[Located[AnyRow]]:
        """Read the rows of some entries.

        Args:
            entries: Entries of the columns.

        Returns:
            The rows in the same order, each with its part.

        Raises:
            ValueError: If a manifest is damaged.
        """
        rows = []
        for entry in entries:
            number = bisect_right(self._firsts, entry) - 1
            part = self._parts[number]
            done = [row for row in part.read().rows if row.status == "done"]
            rows.append((part, done[entry - self._firsts[number]]))
        return rows

    def sample(self, count: int) -> list[int]:
        """Draw at most `count` different entries; an equal number of records gives equal entries."""
        chosen = np.random.default_rng(0).choice(len(self), min(count, len(self)), replace=False)
        return sorted(chosen.tolist())


def extremes(values: Numbers, count: int) -> dict[str, list[int]]:
    """Find the entries of the lowest, the median and the highest values.

    Args:
        values: Finite values; a higher value is better.
        count: Maximum number of entries of each kind.

    Returns:
        Entries under 'worst', 'median' and 'best'. No entry is in two of them, and none of them is empty.
    """
    order = np.argsort(values, kind="stable").tolist()
    middle = max(0, len(order) - count) // 2
    kinds = {"worst": order[:count], "median": order[middle : middle + count], "best": order[::-1][:count]}
    used: set[int] = set()
    unique = {}
    for name, entries in kinds.items():
        unique[name] = [entry for entry in entries if entry not in used]
        used.update(entries)
    return {name: entries for name, entries in unique.items() if entries}


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Number of values between edges; the outer bins include values beyond the edges."""

    edges: Numbers
    """Edges of the bins, [bins + 1]."""

    counts: NDArray[np.int64]
    """Number of values in each bin, [bins]."""


def histogram(values: Numbers) -> Histogram:
    """Count values in at most `MAX_BINS` bins, whose number NumPy chooses.

    The edges enclose all but the outermost half percent on each side. Whole numbers get bins of whole widths.
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
    """Count the records that finished in equal intervals of time, from the start of the first record.

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
    """Distribution of a value over a sample of images, at each timestep."""

    timesteps: Numbers
    """Timesteps of the network, the noisiest first, [T]."""

    low: Numbers
    """Quantile with 10 % of the images below it, [T]."""

    median: Numbers
    """Median, [T]."""

    high: Numbers
    """Quantile with 10 % of the images above it, [T]."""


def by_timestep(timesteps: Numbers, values: Numbers) -> Curve:
    """Compute the distribution of values at each timestep.

    Args:
        timesteps: Timesteps of the network, [T].
        values: Values of at least one image, [images, T].
    """
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
    return Curve(timesteps, low, median, high)


MOST_COPIED = 16
"""Parts that are copied from an object store for a sample, evenly over those of its images."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Values from the `.json` members of a sample of inversions."""

    timesteps: Numbers
    """Timesteps of the network, the noisiest first, [T]."""

    losses: Numbers
    """Losses of the guided steps, [images, T]."""

    inner_steps: Numbers
    """Numbers of updates of the embedding, [images, T]."""

    errors: list[str]
    """Error of each part that cannot be read."""


def read_sample(rows: Iterable[Located[Any]], num_steps: int) -> Sample:
    """Read a sample of inversions.

    Args:
        rows: Rows of the sample, each with its part.
        num_steps: Number of timesteps, T.
    """
    values: list[Numbers] = []
    errors: list[str] = []
    names: dict[StoredPart[Any], set[str]] = {}
    for part, row in rows:
        names.setdefault(part, set()).add(member_name(row.key))
    is_shared = any(part.files.is_shared for part in names)
    step = ceil(len(names) / MOST_COPIED) if is_shared else 1
    for part in list(names)[::step]:
        tar = part.read().tar
        assert tar is not None
        try:
            with part.files.tar(tar) as local:
                for metadata in read_metadata(local, names[part]):
                    lists = [metadata[name] for name in ("timesteps", "losses", "inner_steps")]
                    # lists of another length are damage, too: no checksum is checked here
                    values.append(np.array(lists, dtype=np.float64).reshape(3, num_steps))
        except DAMAGE as error:
            errors.append(part.files.shown(f"{tar} is damaged: {error!r}"))
    timesteps, losses, inner_steps = np.array(values).reshape(-1, 3, num_steps).transpose(1, 0, 2)
    return Sample(timesteps[:1].ravel(), losses, inner_steps, errors)
