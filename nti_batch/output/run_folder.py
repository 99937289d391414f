"""An output folder: its `run.json`, and which records of each work unit are committed.

    OUT/run.json                                settings that change results, and the address of each input shard
    OUT/<folder>/<shard>.<k>of<n>.<part>.tar    two members for each record: <name>.<suffix> and <name>.json
    OUT/<folder>/<shard>.<k>of<n>.<part>.jsonl  the manifest: a row for each record, done or failed
    OUT/<folder>/<shard>.<k>of<n>.complete      state of the input of which no image is missing
    OUT/<folder>/<shard>.<k>of<n>.lock          the process that works on the unit
    OUT/log/                                    log files and numbers of each rank
    OUT/taken.jsonl                             the units that ranks of a job have taken

A record is committed when a manifest names it. No committed part is ever rewritten: a record that is computed again has
another row, of a higher generation, in a later part.

A part grows as `.tar.tmp`. Its commit syncs and renames the tar, then writes the manifest beside it in the same way: a
manifest never names what is not on disk. A later job salvages what a killed job left behind record by record, since
each carries its checksum.
"""

import itertools
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, Self

from nti_batch.data.shards import Shards, stored_address
from nti_batch.files import atomic_write, check_writable, translate_os_errors
from nti_batch.json_object import Json, JsonObject
from nti_batch.lock import UnitLock, exclusive
from nti_batch.output.complete_mark import MAX_MARK_BYTES, CompleteMark
from nti_batch.output.format_version import format_versions
from nti_batch.output.manifest_rows import AnyRow
from nti_batch.output.origin import Origin
from nti_batch.output.part import PartWriter, read_members
from nti_batch.output.run_file import MAX_RUN_BYTES, RUN_FILE, read_run_file, refuse_other_settings
from nti_batch.output.run_kind import AnyRecord, AnySettings, RunKind
from nti_batch.output.stored_part import Located, StoredPart, stored_parts
from nti_batch.records import WorkUnit

logger = logging.getLogger(__name__)


class OutputRun(Generic[AnyRecord, AnyRow, AnySettings]):
    """An output folder with its settings."""

    def __init__(
        self,
        kind: RunKind[AnyRecord, AnyRow, AnySettings],
        out: Path,
        settings: AnySettings,
        shards: Shards,
    ) -> None:
        """Take what `run.json` holds; `create` and `open` make such an object.

        Args:
            kind: Kind of the run.
            out: The output folder.
            settings: Settings that change results.
            shards: Last known addresses of all input shards that the run was given, without passwords and tokens.
        """
        self.kind, self.out, self.settings, self.shards = kind, out, settings, dict(shards)
        self.folder = out / kind.folder
        self._locks: dict[WorkUnit, UnitLock] = {}
        self._generations: dict[WorkUnit, dict[str, int]] = {}
        """Generation of the next row of each record with rows, for the claimed work units."""

    @classmethod
    def create(
        cls,
        kind: RunKind[AnyRecord, AnyRow, AnySettings],
        out: Path,
        settings: AnySettings,
        shards: Shards,
        dry_run: bool = False,
    ) -> Self:
        """Start a run, or resume it with the same settings; shards may be added, or have moved.

        Args:
            kind: Kind of the run.
            out: The output folder.
            settings: Settings that change results.
            shards: Present addresses of the input shards.
            dry_run: Write nothing, and raise what a real start would raise.

        Raises:
            ValueError: If the folder cannot be written, or holds a run with other settings.
        """
        given = {name: stored_address(url) for name, url in shards.items()}
        try:
            if dry_run:
                check_writable(out / kind.folder)
                return cls._merged(kind, out, settings, given)
            out.mkdir(parents=True, exist_ok=True)
            with exclusive(out / f"{RUN_FILE}.lock"):
                run = cls._merged(kind, out, settings, given)
                run._write()
        except OSError as error:
            raise ValueError(
                f"output folder {str(out)!r} cannot be written: {error.strerror}; give another --output.dir"
            ) from error
        return run

    @classmethod
    def _merged(
        cls, kind: RunKind[AnyRecord, AnyRow, AnySettings], out: Path, settings: AnySettings, shards: Shards
    ) -> Self:
        """The run with the shards that it knows and those that are given."""
        if not (out / RUN_FILE).exists():
            return cls(kind, out, settings, shards)
        known = cls.open(kind, out)
        refuse_other_settings(out, known.settings.to_json(), settings.to_json())
        return cls(kind, out, settings, {**known.shards, **shards})

    @classmethod
    def open(cls, kind: RunKind[AnyRecord, AnyRow, AnySettings], out: Path) -> Self:
        """Read an existing run.

        Raises:
            ValueError: If the folder is no run of this kind, or `run.json` is damaged or of a newer version.
        """
        content = read_run_file(out, kind.command)
        command = content.choice("command", ("invert", "edit"))
        settings, shards = content.section("settings"), content.section("shards").all_texts()
        if command != kind.command:
            raise ValueError(
                f"{str(out)!r} is a run of `nti-batch {command}`: give the --output.dir of `nti-batch {kind.command}`"
            )
        content.expect_all_read()
        if not (out / kind.folder).exists():
            raise ValueError(
                f"{str(out)!r} is no run of `nti-batch {kind.command}`: it has no folder {kind.folder!r}; "
                "give the --output.dir of one"
            )
        return cls(kind, out, kind.read_settings(settings), shards)

    def _write(self) -> None:
        """Write `run.json`, unless it already says the same."""
        self.folder.mkdir(exist_ok=True)
        content: dict[str, Json] = {
            "command": self.kind.command,
            "settings": self.settings.to_json(),
            "shards": dict(self.shards),
        }
        path = self.out / RUN_FILE
        known = json.loads(path.read_bytes()) if path.exists() else {}
        if any(known.get(key) != value for key, value in content.items()):
            text = json.dumps({**format_versions(), **content}, indent=2) + "\n"
            if len(text) > MAX_RUN_BYTES:
                raise ValueError(
                    f"{path} would have {len(text):,} bytes for {len(self.shards):,} shards, allowed: "
                    f"{MAX_RUN_BYTES:,}: give each of several output folders a part of the shards"
                )
            atomic_write(path, text)

    def _part(self, unit: WorkUnit, number: int) -> Path:
        return self.folder / f"{unit.name}.{number:05d}.tar"

    def manifests(self, unit: WorkUnit) -> list[Path]:
        """Manifests of a work unit. Their numbers have no gap: listing a folder of millions of files takes long."""
        numbered = (self._part(unit, number).with_suffix(".jsonl") for number in itertools.count())
        return list(itertools.takewhile(Path.exists, numbered))

    def parts(self, unit: WorkUnit) -> list[StoredPart[AnyRow]]:
        """Committed parts of a work unit."""
        return stored_parts(self.manifests(unit), self.kind.row_type)

    def all_parts(self) -> Iterator[StoredPart[AnyRow]]:
        """Committed parts of the run, in the order of their names."""
        manifests = sorted(self.folder.glob("*.jsonl"))
        for _, of_unit in itertools.groupby(manifests, key=lambda path: path.stem.rpartition(".")[0]):
            yield from stored_parts(of_unit, self.kind.row_type)

    def located_rows(self, unit: WorkUnit) -> Iterator[Located[AnyRow]]:
        """Rows of a work unit that count, each with its part; one manifest at a time is in memory."""
        for part in self.parts(unit):
            yield from ((part, row) for row in part.read().rows)

    def rows(self, unit: WorkUnit) -> list[AnyRow]:
        """Rows of a work unit that count: one for each record."""
        return [row for _, row in self.located_rows(unit)]

    def new_part(self, unit: WorkUnit, origin: Origin) -> PartWriter[AnyRecord, AnyRow, AnySettings]:
        """Start the next part of a work unit.

        Args:
            unit: The work unit.
            origin: What makes the part.
        """
        part = self._part(unit, len(self.manifests(unit)))
        return PartWriter(self.kind, self.settings, part, origin, self._generations.get(unit, {}))

    def claim(self, unit: WorkUnit) -> list[AnyRow]:
        """Claim a work unit until `release` or the end of this process, and commit what a killed job finished in it.

        Returns:
            The unit's rows that count.

        Raises:
            UnitInUseError: If another process holds it.
        """
        path = self.folder / f"{unit.name}.lock"
        with translate_os_errors(path):
            self._locks[unit] = UnitLock(path)
        self.salvage(unit)
        rows = self.rows(unit)
        self._generations[unit] = {row.id: row.generation + 1 for row in rows}
        return rows

    def release(self, unit: WorkUnit) -> None:
        """Release a claimed work unit, whose open part must be committed."""
        self._generations.pop(unit, None)
        self._locks.pop(unit).release()

    def release_all(self) -> None:
        """Release all claimed work units."""
        for unit in list(self._locks):
            self.release(unit)

    def salvage(self, unit: WorkUnit) -> int:
        """Commit what a killed job finished but did not commit; return the number of records."""
        number = len(self.manifests(unit))
        part = self._part(unit, number)
        unfinished, rescued = part.with_suffix(".tar.tmp"), part.with_suffix(".tar.salvage")
        saved = 0
        with translate_os_errors(part):
            for left in (rescued, unfinished, part):
                if left.exists() and not part.with_suffix(".jsonl").exists():
                    os.replace(left, rescued)
                    saved += self._commit_members(rescued, unit)
                    rescued.unlink()
            if number:
                # the job that salvaged it died between the commit and the removal
                self._part(unit, number - 1).with_suffix(".tar.salvage").unlink(missing_ok=True)
        return saved

    def _commit_members(self, left: Path, unit: WorkUnit) -> int:
        committed = {row.id: row.generation for row in self.rows(unit)}
        part: PartWriter[AnyRecord, AnyRow, AnySettings] | None = None
        try:
            for payload, metadata in read_members(left):
                row = self.kind.row_type.of_metadata(metadata, "")
                if row.generation > committed.get(row.id, -1):
                    part = part or self.new_part(unit, Origin.from_json(JsonObject(metadata, left).section("origin")))
                    part.add_encoded(payload, metadata)
                    committed[row.id] = row.generation
        except ValueError:
            # the killed job stopped writing here; all records before this place are whole
            logger.info("%s is cut; %d records were salvaged", left, len(part.rows) if part else 0)
        if part is None:
            return 0
        part.commit()
        return len(part.rows)

    def mark_complete(self, unit: WorkUnit, mark: CompleteMark) -> None:
        """Mark a work unit as complete, so that its input need not be read again in this state."""
        path = self._complete(unit)
        with translate_os_errors(path):
            atomic_write(path, json.dumps(mark.to_json()) + "\n")

    def complete_mark(self, unit: WorkUnit) -> CompleteMark | None:
        """The mark of a complete work unit; None if nothing marks it.

        Raises:
            ValueError: If the mark is damaged.
        """
        path = self._complete(unit)
        try:
            return CompleteMark.from_json(JsonObject.read(path, MAX_MARK_BYTES))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{error}; remove it, and run the job again") from error

    def _complete(self, unit: WorkUnit) -> Path:
        return self.folder / f"{unit.name}.complete"


AnyRun = OutputRun[Any, Any, Any]
