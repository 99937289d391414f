"""The plan of an inversion run: which images of each work unit are missing."""

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from nti_batch.data.input_state import input_states
from nti_batch.data.samples import (
    ALL_READ,
    RawSample,
    Reading,
    caption_source,
    decode_sample,
    first_keys,
    read_unit,
    samples_of,
)
from nti_batch.data.shard_reader import read_keys
from nti_batch.data.shards import Shards, public_address, refuse_pipes, work_units
from nti_batch.output.inversions import InversionRun
from nti_batch.output.manifest_rows import InversionRow, Row, member_name
from nti_batch.plans.plan import NOTHING_AGAIN, Plan, Redo, never
from nti_batch.records import CaptionedImage, EndOfUnit, Failure, Inversion, WorkUnit
from nti_batch.settings import InversionRunSettings

logger = logging.getLogger(__name__)
COUNTED_SHARDS = 16
"""Shards whose headers are read for an estimate."""


class ImagePlan(Plan[Inversion, InversionRow, InversionRunSettings]):
    """The images of an inversion run."""

    def __init__(
        self,
        run: InversionRun,
        units: Sequence[WorkUnit],
        redo: Redo = NOTHING_AGAIN,
        reading: Reading = ALL_READ,
        stop_requested: Callable[[], bool] = never,
    ) -> None:
        """Take the run and its work units, as `Plan` does.

        Args:
            run: The output folder.
            units: Work units, those of a shard one after the other.
            redo: Committed images that count as missing.
            reading: How the input is read.
            stop_requested: Whether finding what is missing should end early.
        """
        super().__init__(run, units, redo, reading)
        self._stop_requested = stop_requested
        self._limited: dict[str, frozenset[str]] | None = None
        """Keys of the first images of the input by shard, once they are known."""

        self._states: tuple[str, list[str]] = "", []
        """The shard that was looked at last, and the state of the input of each of its work units."""

    @classmethod
    def of_run(cls, run: InversionRun, shards: Shards | None = None, allow_pipe: bool = False) -> "ImagePlan":
        """The plan of a whole run.

        Args:
            run: The output folder.
            shards: Present addresses of the input shards; None for those that the run recorded.
            allow_pipe: Whether reading a shard may run a shell command.

        Raises:
            ValueError: If reading a shard would run a command and that is not allowed.
        """
        present = run.shards if shards is None else shards
        if not allow_pipe:
            refuse_pipes(present.values())
        return cls(run, work_units(present, run.settings.units_per_shard), reading=Reading(allow_pipe=allow_pipe))

    def is_waiting(self, unit: WorkUnit) -> bool:
        """Whether an image of the unit is missing, or is to be computed again."""
        if self.reading.limit is not None:
            keys = self._limited_keys(unit)
            return bool(keys) and (self.redo.changed or not keys <= self._kept(unit))
        if not self._is_complete(unit) or (self.redo.changed and not self._input_state(unit)):
            return True
        return (bool(self.redo.ids) or self.redo.failed) and any(self.redo.covers(row) for row in self.run.rows(unit))

    def _is_complete(self, unit: WorkUnit) -> bool:
        """Whether the unit is marked as complete for the present state of its input."""
        mark = self.run.complete_mark(unit)
        return mark is not None and mark.input_state == self._input_state(unit)

    def _input_state(self, unit: WorkUnit) -> str:
        if self._states[0] != unit.shard:
            extension, _ = caption_source(self.run.settings.caption)
            self._states = unit.shard, input_states(unit.url, unit.count, extension)
        return self._states[1][unit.index]

    def _limited_keys(self, unit: WorkUnit) -> set[str]:
        """Keys of a work unit that are among the first images of the input."""
        assert self.reading.limit is not None
        if self._limited is None:
            shards = {unit.shard: unit.url for unit in self.units}
            caption, allow_pipe = self.run.settings.caption, self.reading.allow_pipe
            self._limited = first_keys(shards, caption, self.reading.limit, allow_pipe, self._stop_requested)
        return {key for key in self._limited.get(unit.shard, ()) if unit.holds(key)}

    def _kept(self, unit: WorkUnit) -> set[str]:
        """Keys of the committed images of a work unit that are not computed again."""
        return {row.key for row in self.run.rows(unit) if not self.redo.covers(row)}

    def _samples(self, unit: WorkUnit, stop_requested: Callable[[], bool]) -> Iterator[RawSample | Failure]:
        """Samples of a work unit, and failures; with a limit, up to its last sample within the limit."""
        samples = read_unit(unit, self.run.settings.caption, self.reading, stop_requested)
        return samples if self.reading.limit is None else samples_of(self._limited_keys(unit), samples)

    def read(
        self, unit: WorkUnit, rows: Sequence[Row], stop_requested: Callable[[], bool] = never
    ) -> Iterator[CaptionedImage | Failure | EndOfUnit]:
        """The missing images of a work unit, decoded."""
        known, state = {row.key: row for row in rows}, self._input_state(unit)
        changed: list[str] = []
        found, read = set[str](), set[str]()
        for sample in self._samples(unit, stop_requested):
            row = known.get(sample.key)
            found.add(sample.key)
            if row and _has_changed(row, sample):
                changed.append(sample.key)
            if row is None or self._is_redone(row, sample):
                read.add(sample.key)
                yield self._decoded(sample)
        self.report_changed(unit, changed)
        is_whole = self.reading.limit is None and "" not in found
        if is_whole and (gone := known.keys() - found - {""}):
            logger.warning(
                "%s: %d committed images are no longer in the input, such as %r", unit.shard, len(gone), min(gone)
            )
        yield EndOfUnit(
            unit,
            records=len(known.keys() | read),
            read=len(read),
            input_state=state if self.reading.limit is None and (self.redo.changed or not changed) else None,
            is_recovered=is_whole and "" in known and known[""].status == "failed",
        )

    def first(self, units: Sequence[WorkUnit]) -> Iterator[object]:
        """The missing images of a shard's work units, decoded, and failures, in the order of the shard."""
        known = {row.key: row for unit in units for row in self.run.rows(unit)}
        whole = WorkUnit(units[0].shard, units[0].url, 0, 1)
        for sample in self._samples(whole, self._stop_requested):
            row = known.get(sample.key)
            is_of_units = not sample.key or any(unit.holds(sample.key) for unit in units)
            if is_of_units and (row is None or self._is_redone(row, sample)):
                yield self._decoded(sample)

    def _decoded(self, sample: RawSample | Failure) -> CaptionedImage | Failure:
        if isinstance(sample, Failure):
            return sample
        settings = self.run.settings
        return decode_sample(sample, settings.height, settings.width, self.reading.max_memory, settings.fit)

    def _is_redone(self, row: Row, sample: RawSample | Failure) -> bool:
        """Whether a committed record is computed again; the row of a damaged shard counts until it is recovered."""
        return row.status == "recovered" or self.redo.covers(row) or (self.redo.changed and _has_changed(row, sample))

    def estimate(self, units: Sequence[WorkUnit]) -> int | None:
        """Approximate number of missing images, by the headers of the first shards; None if those are remote."""
        if self.reading.limit is not None:
            return sum(len(self._limited_keys(unit) - self._kept(unit)) for unit in units)
        urls = list(dict.fromkeys(unit.url for unit in units))[:COUNTED_SHARDS]
        if not all(os.path.exists(url) for url in urls):  # Path's own raises for a long command
            return None
        keys = {url: self._read_keys(url)[0] for url in urls}
        counted = [unit for unit in units if unit.url in keys]
        total = sum(self._count_left(unit, keys[unit.url]) for unit in counted)
        return round(total * len(units) / max(1, len(counted)))

    def _read_keys(self, url: str) -> tuple[list[str], list[str]]:
        return read_keys(url, self.run.settings.caption, self._stop_requested, self.reading.allow_pipe)

    def _count_left(self, unit: WorkUnit, keys: Sequence[str]) -> int:
        """Number of images of a work unit without a row, or that are computed again."""
        kept = self._kept(unit)
        return sum(1 for key in keys if unit.holds(key) and key not in kept)

    def whole_run(self) -> Sequence[WorkUnit]:
        """Work units of all shards that the run was ever given."""
        present = {unit.shard: unit.url for unit in self.units}
        return work_units(self.run.shards | present, self.run.settings.units_per_shard)

    def count_missing(self, committed: Mapping[WorkUnit, Collection[str]]) -> int:
        """Number of missing images of a shard, by the headers of its tar unless all its units are complete."""
        if self.reading.limit is not None:
            limited = ((unit, key) for unit in committed for key in self._limited_keys(unit))
            return sum(1 for unit, key in limited if member_name(key) not in committed[unit])
        waiting = [unit for unit in committed if not self._is_complete(unit)]
        if not waiting:
            return 0
        url = waiting[0].url
        keys, errors = self._read_keys(url)
        if errors:
            logger.warning(
                "%s cannot be read to its end, so not all its images are counted: %s", public_address(url), errors[0]
            )
        return sum(1 for unit in waiting for key in keys if unit.holds(key) and member_name(key) not in committed[unit])


def _has_changed(row: Row, sample: RawSample | Failure) -> bool:
    """Whether a sample has other bytes than the record was computed from; False if either is unknown."""
    return "" not in (row.input_sha256, sample.input_sha256) and row.input_sha256 != sample.input_sha256
