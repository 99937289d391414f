"""Which edits this rank makes."""

import logging
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nti_batch.data.samples import read_inputs
from nti_batch.data.shards import refuse_pipes, work_units
from nti_batch.diffusion.edits import EditSettings
from nti_batch.editing.pie_bench import read_edits
from nti_batch.editing.requests import ImageEdits, read_requests, read_settings, request_id, request_sha256
from nti_batch.jobs.datamodule import UnitDataModule
from nti_batch.output.edit_status import EditStatus, edit_status
from nti_batch.output.edits import EditRun
from nti_batch.output.inversions import InversionRun, read_part
from nti_batch.output.manifest import EditRow, Row
from nti_batch.records import CaptionedImage, EditRequest, EndOfUnit, Failure, WorkUnit

logger = logging.getLogger(__name__)


class EditDataModule(UnitDataModule[EditRun]):
    """Inversions with what is asked of them, each rank its own work units.

    An edit belongs to the unit that its image's key falls into, so that it stays there when more edits are asked for.
    """

    def __init__(
        self,
        inversions: str,
        edits: str | None = None,
        edit_prompt: str | None = None,
        units_per_shard: int = 8,
        allow_pipe: bool = False,
        **job: Any,
    ) -> None:
        """Settings of the input.

        Args:
            inversions: Output folder of `nti-batch invert`.
            edits: JSONL or CSV with an edit a line, or a PIE-Bench folder; null edits every inversion.
            edit_prompt: One edit's prompt for every inversion; null, and no edits, rebuilds them.
            units_per_shard: Work units of a shard: what the ranks share out. Fixed for a run.
            allow_pipe: Allow 'pipe:COMMAND' shards when the inputs are read for scores; COMMAND is run by a shell.
            **job: As for `UnitDataModule`.
        """
        super().__init__(**job)
        if edits is not None and edit_prompt is not None:
            raise ValueError("data.edits and data.edit_prompt are both given: leave one out")
        self.inversions = InversionRun(Path(inversions))
        self.urls = self.inversions.shards()
        self.inverted_with = self.inversions.settings()
        self.edits, self.edit_prompt, self.units_per_shard, self.allow_pipe = (
            edits,
            edit_prompt,
            units_per_shard,
            allow_pipe,
        )
        self.units = work_units(self.urls, units_per_shard)
        self._units = {(unit.shard, unit.index): unit for unit in self.units}
        self._listed: dict[WorkUnit, list[EditRequest]] | None = None
        self._inverted: tuple[str, list[str]] | None = None
        """The last shard that was asked about, and the keys that are done there."""

    def attach(self, run: EditRun, defaults: EditSettings) -> None:
        """Read what is asked for.

        Args:
            run: What is committed there is not made again.
            defaults: For settings that an edit leaves open.

        Raises:
            ValueError: If the edits cannot be understood.
        """
        self.run, self.defaults = run, defaults
        if self.edits is None:
            return
        requests = self._read_list(Path(self.edits))
        if any(request.mask for request in requests) and not self.allow_pipe:
            refuse_pipes(self.urls)
        self._listed = {}
        for request in requests:
            self._listed.setdefault(self.unit_of(request.shard, request.key), []).append(request)

    @classmethod
    def of_run(cls, out: Path, allow_pipe: bool) -> "EditDataModule":
        """What a run was asked for, as that is to be had now.

        Args:
            out: The run's output folder.
            allow_pipe: Whether a command may be run to read an input.

        Raises:
            ValueError: If it is no run, or what it was made from is gone.
        """
        run = EditRun(out)
        settings = run.settings()
        inversions, edits, prompt, units_per_shard = (
            settings[f"data.{name}"] for name in ("inversions", "edits", "edit_prompt", "units_per_shard")
        )
        data = cls(str(inversions), edits, prompt, units_per_shard, allow_pipe)  # type: ignore[arg-type]
        given = {name.removeprefix("edit."): value for name, value in settings.items() if name.startswith("edit.")}
        data.attach(run, read_settings(given, EditSettings()))
        return data

    def _read_list(self, path: Path) -> list[EditRequest]:
        shards = list(dict.fromkeys(unit.shard for unit in self.units))
        if not path.is_dir():
            return read_requests(path, shards, self.defaults)
        if len(shards) != 1:
            raise ValueError(f"{str(path)!r} is about one shard, and the inversions are of {len(shards)}")
        return read_edits(path, shards[0], self.defaults)

    def unit_of(self, shard: str, key: str) -> WorkUnit:
        """The work unit of an image."""
        return self._units[shard, zlib.crc32(key.encode()) % self.units_per_shard]

    @property
    def result_settings(self) -> dict[str, str | int | None]:
        """The settings that change results or names of files, for `run.json`."""
        return {
            "data.inversions": str(self.inversions.out.resolve()),
            "data.edits": None if self.edits is None else str(Path(self.edits).resolve()),
            "data.edit_prompt": self.edit_prompt,
            "data.units_per_shard": self.units_per_shard,
        }

    def requests_of(self, unit: WorkUnit) -> list[EditRequest]:
        """What is asked for in a work unit."""
        if self._listed is not None:
            return self._listed.get(unit, [])
        name = "reconstruction" if self.edit_prompt is None else "edit"
        return [
            EditRequest(
                shard=unit.shard,
                key=key,
                name=name,
                prompt=None,
                edit_prompt=self.edit_prompt,
                settings=self.defaults,
            )
            for key in self._inverted_keys(unit)
            if self.unit_of(unit.shard, key) == unit
        ]

    def _inverted_keys(self, unit: WorkUnit) -> list[str]:
        """The images of a shard that are done; the units of a shard are asked about in turn, and read it once."""
        if self._inverted is None or self._inverted[0] != unit.shard:
            rows = (row for inverted in self._inverted_units(unit) for row in self.inversions.rows(inverted))
            self._inverted = unit.shard, [row.key for row in rows if row.status == "done"]
        return self._inverted[1]

    def _inverted_units(self, unit: WorkUnit) -> list[WorkUnit]:
        """The work units of the inversions of a shard."""
        units_per_shard = self.inverted_with["data.units_per_shard"]
        assert isinstance(units_per_shard, int)
        return work_units([unit.url], units_per_shard)

    def is_waiting(self, unit: WorkUnit) -> bool:
        """Whether an edit is missing, or is to be tried again."""
        assert self.run is not None, "attach() comes first"
        rows = self.run.rows(unit)
        return bool(self.missing(unit, rows)) or (self.retry_failed and any(row.status == "failed" for row in rows))

    def missing(self, unit: WorkUnit, rows: Iterable[Row]) -> list[EditRequest]:
        """What is asked for in a work unit of which these rows are committed, and is not among them."""
        committed = {row.id for row in rows}
        return [request for request in self.requests_of(unit) if request_id(request) not in committed]

    def estimate(self, units: list[WorkUnit]) -> int:
        """How many edits these work units have before them."""
        assert self.run is not None, "attach() comes first"
        return sum(len(self.missing(unit, self.run.rows(unit))) for unit in units)

    def status(
        self, units: Sequence[WorkUnit], on_row: Callable[[Path, EditRow], None] = lambda path, row: None
    ) -> EditStatus:
        """How far they are; `note` is told of each manifest and row."""
        return edit_status((rows, self.missing(unit, rows)) for unit in units for rows in [self._rows(unit, on_row)])

    def _rows(self, unit: WorkUnit, on_row: Callable[[Path, EditRow], None]) -> list[EditRow]:
        assert self.run is not None, "attach() comes first"
        rows = []
        for path, row in self.run.located_rows(unit):
            on_row(path, row)
            rows.append(row)
        return rows

    def refuse_other_edits(self, units: list[WorkUnit]) -> None:
        """Compare what is asked for with what was made under the same name.

        Raises:
            ValueError: If it is something else.
        """
        assert self.run is not None, "attach() comes first"
        for unit in units:
            asked = {request_id(request): request for request in self.requests_of(unit)}
            for row in self.run.rows(unit) if asked else ():
                request = asked.get(row.id)
                if row.status == "done" and request and request_sha256(request) != row.request_sha256:
                    raise ValueError(
                        f"edit {row.name!r} of {row.shard}/{row.key} was made with other words, settings or another "
                        f"mask in {str(self.run.out)!r}: give it another name, or give another --output.dir"
                    )

    def read(self, unit: WorkUnit, rows: Sequence[Row]) -> Iterator[ImageEdits | Failure | EndOfUnit]:
        """Inversions with what is missing of their edits, and failures where there is no inversion."""
        open_requests = self.missing(unit, rows)
        missing: defaultdict[tuple[str, str], list[EditRequest]] = defaultdict(list)
        for request in open_requests:
            missing[request.shard, request.key].append(request)
        originals = self.read_originals(unit, open_requests)
        damage = []
        for manifest in (
            path for inverted in self._inverted_units(unit) for path in self.inversions.manifests(inverted)
        ):
            try:
                for stored in read_part(manifest, missing):
                    image = (stored.shard, stored.key)
                    yield ImageEdits(unit, stored, tuple(missing.pop(image)), originals.get(image))
            except ValueError as error:
                damage.append(str(error))
        reasons = {} if damage or not missing else self._why_failed(unit)
        for (_, key), requests in missing.items():
            reason = "; ".join(damage) or reasons.get(key) or self._unknown(unit, key)
            yield from (Failure(unit, key, "inversion", reason, request.name) for request in requests)
        yield EndOfUnit(unit, len(rows), len(open_requests))

    def _why_failed(self, unit: WorkUnit) -> dict[str, str]:
        """Why the images of a shard that were not inverted were not, by their keys."""
        rows = (row for inverted in self._inverted_units(unit) for row in self.inversions.rows(inverted))
        failed = (row for row in rows if row.status == "failed")
        return {row.key: f"its inversion has failed at stage {row.stage!r}: {row.error}" for row in failed}

    def _unknown(self, unit: WorkUnit, key: str) -> str:
        return (
            f"{str(self.inversions.out)!r} has no inversion of the key {key!r} in shard {unit.shard!r}: correct the "
            "key, or invert the image and run again with --data.retry_failed=true"
        )

    def read_originals(self, unit: WorkUnit, requests: Iterable[EditRequest]) -> dict[tuple[str, str], CaptionedImage]:
        """The inputs of those images of which an edit has a mask; without them there are no scores."""
        wanted = {(request.shard, request.key) for request in requests if request.mask}
        if not wanted:
            return {}
        height, width, caption = (self.inverted_with[f"data.{name}"] for name in ("height", "width", "caption"))
        assert isinstance(height, int) and isinstance(width, int)
        found = read_inputs([unit], str(caption), height, width, wanted)
        if len(found) < len(wanted):
            logger.warning(
                "%s: %d of %d inputs cannot be read, so their edits get no scores",
                unit.url,
                len(wanted) - len(found),
                len(wanted),
            )
        return found
