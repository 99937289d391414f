"""The plan of an edit run: which edits of each work unit are missing."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path

from nti_batch.data.samples import ALL_READ, Reading, read_inputs
from nti_batch.data.shards import public_address, refuse_pipes, work_units
from nti_batch.editing.pie_bench import read_edits
from nti_batch.editing.requests import ImageEdits, read_requests, request_id, request_sha256
from nti_batch.output.edits import EditRun
from nti_batch.output.inversions import InversionRun, open_inversions, read_part
from nti_batch.output.manifest_rows import EditRow, InversionRow, Row
from nti_batch.output.stored_part import StoredPart
from nti_batch.plans.plan import NOTHING_AGAIN, Plan, Redo, never
from nti_batch.records import CaptionedImage, EditedImage, EditRequest, EndOfUnit, Failure, WorkUnit
from nti_batch.settings import EditRunSettings

logger = logging.getLogger(__name__)
ImageId = tuple[str, str]


def read_edit_list(settings: EditRunSettings, inversions: InversionRun) -> list[EditRequest] | None:
    """The edits that a run lists; None if it edits or reconstructs every inversion.

    Args:
        settings: Settings of the edit run.
        inversions: The inversions to edit.

    Raises:
        ValueError: If the list cannot be read.
    """
    if settings.edits is None:
        return None
    path, shards = Path(settings.edits), list(inversions.shards)
    if not path.is_dir():
        requests = read_requests(path, shards, settings.edit)
    elif len(shards) == 1:
        requests = read_edits(path, shards[0], settings.edit)
    else:
        raise ValueError(
            f"{str(path)!r} lists edits of one shard, and the inversions have {len(shards)} shards: invert the "
            "benchmark's shard into a run of its own"
        )
    return requests


def check_pipes(requests: Iterable[EditRequest], inversions: InversionRun, allow_pipe: bool) -> None:
    """Check that the scores of edits with a mask, which need the input images, run no shell command.

    Raises:
        ValueError: If a shard is a command, and that is not allowed.
    """
    if any(request.mask for request in requests) and not allow_pipe:
        refuse_pipes(inversions.shards.values())


class EditPlan(Plan[EditedImage, EditRow, EditRunSettings]):
    """The edits of an edit run.

    An edit belongs to the work unit that the key of its image hashes to: it stays there when more edits are requested.
    """

    def __init__(
        self,
        run: EditRun,
        inversions: InversionRun,
        requests: Sequence[EditRequest] | None,
        redo: Redo = NOTHING_AGAIN,
        reading: Reading = ALL_READ,
    ) -> None:
        """Sort the requests into work units.

        Args:
            run: The output folder.
            inversions: The inversions to edit.
            requests: Listed edits; None edits or reconstructs every inversion.
            redo: Committed edits that count as missing.
            reading: How much of the list is edited, and whether reading an input image may run a shell command.
        """
        super().__init__(run, work_units(inversions.shards, run.settings.units_per_shard), redo, reading)
        self.inversions = inversions
        self._units = {(unit.shard, unit.index): unit for unit in self.units}
        self._inverted: tuple[str, dict[str, str]] = "", {}
        """The last shard whose rows were read, and the checksum of each of its inversions by key."""
        self._listed: dict[WorkUnit, list[EditRequest]] | None = None
        if requests is not None or reading.limit is not None:
            self._listed = {}
            for request in islice(self._requests_of_all() if requests is None else requests, reading.limit):
                self._listed.setdefault(self.unit_of(request.shard, request.key), []).append(request)

    @classmethod
    def of_run(cls, run: EditRun, allow_pipe: bool = False) -> "EditPlan":
        """The plan of a whole run, from its recorded settings.

        Args:
            run: The output folder.
            allow_pipe: Whether reading an input image may run a shell command.

        Raises:
            ValueError: If what the run was made from is gone.
        """
        inversions = open_inversions(run.settings.inversions)
        return cls(run, inversions, read_edit_list(run.settings, inversions), reading=Reading(allow_pipe=allow_pipe))

    def unit_of(self, shard: str, key: str) -> WorkUnit:
        """The work unit of an image's edits."""
        return self._units[shard, WorkUnit.index_of(key, self.run.settings.units_per_shard)]

    def requests_of(self, unit: WorkUnit) -> list[EditRequest]:
        """The requested edits of a work unit."""
        if self._listed is not None:
            return self._listed.get(unit, [])
        return [self._request(unit, key) for key in self._inversions_of(unit) if unit.holds(key)]

    def _requests_of_all(self) -> Iterator[EditRequest]:
        """Yield an edit of each inversion, in the order of shards and keys."""
        for _, (unit, *_) in groupby(self.units, key=lambda unit: unit.shard):
            yield from (self._request(unit, key) for key in sorted(self._inversions_of(unit)))

    def _request(self, unit: WorkUnit, key: str) -> EditRequest:
        """The edit that a run without a list makes of an image."""
        settings = self.run.settings
        return EditRequest(
            shard=unit.shard,
            key=key,
            name="reconstruction" if settings.edit_prompt is None else "edit",
            prompt=None,
            edit_prompt=settings.edit_prompt,
            settings=settings.edit,
        )

    def _inversions_of(self, unit: WorkUnit) -> dict[str, str]:
        """Checksums of the finished inversions of a shard; consecutive work units of one shard read its rows once."""
        if self._inverted[0] != unit.shard:
            rows = (row for inverted in self._inverted_units(unit) for row in self.inversions.rows(inverted))
            self._inverted = unit.shard, {row.key: row.sha256 for row in rows if row.status == "done"}
        return self._inverted[1]

    def _inverted_units(self, unit: WorkUnit) -> list[WorkUnit]:
        """Work units of the inversions of a shard."""
        return work_units({unit.shard: unit.url}, self.inversions.settings.units_per_shard)

    def is_waiting(self, unit: WorkUnit) -> bool:
        """Whether an edit of the unit is missing, is to be computed again, or has a changed inversion to report."""
        rows = self.run.rows(unit)
        return bool(self._requested(unit, rows)) or bool(self._changed(unit, rows))

    def missing(self, unit: WorkUnit, rows: Iterable[Row]) -> list[EditRequest]:
        """Requested edits of a work unit without a row."""
        return self._without(unit, {row.id for row in rows})

    def _requested(self, unit: WorkUnit, rows: Sequence[Row]) -> list[EditRequest]:
        """Requested edits of a work unit that are missing or computed again."""
        changed = self._changed(unit, rows) if self.redo.changed else {}
        return self._without(unit, {row.id for row in rows if not self.redo.covers(row)} - changed.keys())

    def _changed(self, unit: WorkUnit, rows: Sequence[Row]) -> dict[str, str]:
        """Name of each committed edit whose inversion has been computed again since, by its id."""
        now = self._inversions_of(unit) if any(row.input_sha256 for row in rows) else {}
        return {
            row.id: f"{row.key}: {row.id}"
            for row in rows
            if row.input_sha256 and now.get(row.key, row.input_sha256) != row.input_sha256
        }

    def _without(self, unit: WorkUnit, committed: Collection[str]) -> list[EditRequest]:
        return [request for request in self.requests_of(unit) if request_id(request) not in committed]

    def estimate(self, units: Sequence[WorkUnit]) -> int:
        """Number of missing edits of work units."""
        return sum(len(self._requested(unit, self.run.rows(unit))) for unit in units)

    def whole_run(self) -> Sequence[WorkUnit]:
        """Work units of all shards of the inversions."""
        return self.units

    def count_missing(self, committed: Mapping[WorkUnit, Collection[str]]) -> int:
        """Number of missing edits of a shard."""
        return sum(len(self._without(unit, ids)) for unit, ids in committed.items())

    def refuse_changed_requests(self, units: Sequence[WorkUnit]) -> None:
        """Compare the requests with the committed edits of the same names.

        Raises:
            ValueError: If one of them was made from another request.
        """
        for unit in units:
            asked = {request_id(request): request for request in self.requests_of(unit)}
            for row in self.run.rows(unit) if asked else ():
                request = asked.get(row.id)
                is_kept = row.status == "done" and not self.redo.covers(row)
                if is_kept and request and request_sha256(request) != row.request_sha256:
                    raise ValueError(
                        f"edit {row.name!r} of {row.shard}/{row.key} was made with other words, settings or another "
                        f"mask in {self.run.files.address!r}: give it another name, give another --output.dir, or make "
                        f"the edits of the image again with --data.redo {row.shard}/{row.key}"
                    )

    def read(
        self, unit: WorkUnit, rows: Sequence[Row], stop_requested: Callable[[], bool] = never
    ) -> Iterator[ImageEdits | Failure | EndOfUnit]:
        """Inversions with their missing edits, and failures for edits without an inversion."""
        requests, changed = self._requested(unit, rows), self._changed(unit, rows)
        self.report_changed(unit, list(changed.values()))
        waiting: defaultdict[ImageId, list[EditRequest]] = defaultdict(list)
        for request in requests:
            waiting[request.shard, request.key].append(request)
        originals = self.read_originals(unit, requests)
        errors: list[str] = []
        for part in self._inverted_parts(unit):
            try:
                for stored in read_part(part, waiting):
                    image = (stored.shard, stored.key)
                    yield ImageEdits(unit, stored, tuple(waiting.pop(image)), originals.get(image))
            except ValueError as error:
                errors.append(str(error))
        yield from self._failures(unit, waiting, errors)
        committed = {row.id for row in rows} | {request_id(request) for request in requests}
        yield EndOfUnit(unit, len(committed), len(requests))

    def _inverted_parts(self, unit: WorkUnit) -> Iterator[StoredPart[InversionRow]]:
        """Parts of the inversions of a shard."""
        for inverted in self._inverted_units(unit):
            yield from self.inversions.parts(inverted)

    def _failures(
        self, unit: WorkUnit, waiting: Mapping[ImageId, Sequence[EditRequest]], errors: Sequence[str]
    ) -> Iterator[Failure]:
        """Failures of the edits whose images have no inversion."""
        reasons = {} if errors or not waiting else self._why_failed(unit)
        for (_, key), requests in waiting.items():
            reason = "; ".join(errors) or reasons.get(key) or self._unknown(unit, key)
            yield from (Failure(unit, key, "inversion", reason, request.name) for request in requests)

    def _why_failed(self, unit: WorkUnit) -> dict[str, str]:
        """Errors of the failed inversions of a shard, by their keys."""
        rows = (row for inverted in self._inverted_units(unit) for row in self.inversions.rows(inverted))
        failed = (row for row in rows if row.status == "failed")
        return {row.key: f"its inversion has failed at stage {row.stage!r}: {row.error}" for row in failed}

    def _unknown(self, unit: WorkUnit, key: str) -> str:
        return (
            f"{self.inversions.files.address!r} has no inversion of the key {key!r} in shard {unit.shard!r}: correct "
            "the key, or invert the image and run again with --data.retry_failed=true"
        )

    def read_originals(self, unit: WorkUnit, requests: Iterable[EditRequest]) -> dict[ImageId, CaptionedImage]:
        """Input images of the requests that have a mask; without them such edits get no scores.

        Raises:
            ValueError: If the shard is a shell command, and that is not allowed.
        """
        wanted = {(request.shard, request.key) for request in requests if request.mask}
        if not wanted:
            return {}
        settings = self.inversions.settings
        found = read_inputs(
            [unit],
            settings.caption,
            settings.height,
            settings.width,
            wanted,
            self.reading.allow_pipe,
            settings.fit,
        )
        if len(found) < len(wanted):
            logger.warning(
                "%s: %d of %d inputs cannot be read, so their edits get no scores",
                public_address(unit.url),
                len(wanted) - len(found),
                len(wanted),
            )
        return found
