"""A run: its `run.json`, and which records of each work unit are committed.

    OUT/run.json                                settings that change results, and the address of each input shard
    OUT/<folder>/<shard>.<k>of<n>.<part>.tar    two members for each record: <name>.<suffix> and <name>.json
    OUT/<folder>/<shard>.<k>of<n>.<part>.jsonl  the manifest: a row for each record, done or failed
    OUT/<folder>/<shard>.<k>of<n>.complete      state of the input of which no image is missing
    OUT/<folder>/<shard>.<k>of<n>.lock          the process that works on the unit
    OUT/log/                                    log files and numbers of each rank
    OUT/taken.jsonl                             the units that ranks of a job have taken

A record is committed when a manifest names it. No committed part is ever rewritten: a record that is computed again has
another row, of a higher generation, in a later part.

In an object store, OUT is an address, and commits rest on puts if absent (docs/protocol.md). `RunFiles` hides which of
the two it is.

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
from nti_batch.files import OutputError, translate_os_errors
from nti_batch.json_object import JsonObject
from nti_batch.output.complete_mark import MAX_MARK_BYTES, CompleteMark
from nti_batch.output.manifest import Manifest
from nti_batch.output.manifest_rows import AnyRow
from nti_batch.output.origin import Origin
from nti_batch.output.part import PartWriter, read_members
from nti_batch.output.places import run_files
from nti_batch.output.run_file import read_run_file, read_shards, refuse_other_settings, run_text
from nti_batch.output.run_files import RUN_FILE, RunFiles, shown_errors
from nti_batch.output.run_kind import AnyRecord, AnySettings, RunKind
from nti_batch.output.stored_part import Located, StoredPart, stored_parts
from nti_batch.records import WorkUnit

logger = logging.getLogger(__name__)


class OutputRun(Generic[AnyRecord, AnyRow, AnySettings]):
    """A run with its settings."""

    def __init__(
        self,
        kind: RunKind[AnyRecord, AnyRow, AnySettings],
        files: RunFiles,
        settings: AnySettings,
        shards: Shards,
    ) -> None:
        """Take what `run.json` holds; `create` and `open` make such an object.

        Args:
            kind: Kind of the run.
            files: Its files.
            settings: Settings that change results.
            shards: Last known addresses of all input shards that the run was given, without passwords and tokens.
        """
        self.kind, self.files, self.settings, self.shards = kind, files, settings, dict(shards)
        self.out = files.root
        """The output folder, or the local copy of a run in an object store."""

        self.folder, self.folder_address = self.out / kind.folder, f"{files.address}/{kind.folder}"
        self._generations: dict[WorkUnit, dict[str, int]] = {}
        """Generation of the next row of each record with rows, for the claimed work units."""

    @classmethod
    def create(
        cls,
        kind: RunKind[AnyRecord, AnyRow, AnySettings],
        out: Path | str,
        settings: AnySettings,
        shards: Shards,
        dry_run: bool = False,
        spool: str | None = None,
    ) -> Self:
        """Start a run, or resume it with the same settings; shards may be added, or have moved.

        Args:
            kind: Kind of the run.
            out: The output folder, or an address in an object store.
            settings: Settings that change results.
            shards: Present addresses of the input shards.
            dry_run: Write nothing, and raise what a real start would raise.
            spool: Local folder of a run in an object store; None for that of the user.

        Raises:
            ValueError: If the folder cannot be written, or holds a run with other settings.
        """
        given, files = {name: stored_address(url) for name, url in shards.items()}, run_files(out, spool)
        try:
            if dry_run:
                files.check_writable(kind.folder)
                return cls._merged(kind, files, settings, given)[0]
            with files.creating(kind.folder):
                while True:
                    run, known = cls._merged(kind, files, settings, given)
                    if run._write(known):
                        # the first start has made the place of an object store's copy
                        return cls(kind, files, settings, run.shards)
        except OSError as error:
            raise ValueError(
                f"output folder {files.address!r} cannot be written: {error.strerror}; give another --output.dir"
            ) from error

    @classmethod
    def _merged(
        cls, kind: RunKind[AnyRecord, AnyRow, AnySettings], files: RunFiles, settings: AnySettings, shards: Shards
    ) -> tuple[Self, Shards | None]:
        """The run with the shards that it knows and those that are given, and the former; None for a new run."""
        if not files.path(RUN_FILE).exists():
            return cls(kind, files, settings, shards), None
        known = cls._read(kind, files)
        refuse_other_settings(files.address, known.settings.to_json(), settings.to_json())
        return cls(kind, files, settings, {**known.shards, **shards}), known.shards

    @classmethod
    def open(cls, kind: RunKind[AnyRecord, AnyRow, AnySettings], out: Path | str, spool: str | None = None) -> Self:
        """Read an existing run.

        Raises:
            ValueError: If the folder is no run of this kind, or `run.json` is damaged or of a newer version.
        """
        return cls._read(kind, run_files(out, spool))

    @classmethod
    def _read(cls, kind: RunKind[AnyRecord, AnyRow, AnySettings], files: RunFiles) -> Self:
        with shown_errors(files.shown):
            content = read_run_file(files, kind.command)
            command = content.choice("command", ("invert", "edit"))
            settings, shards = content.section("settings"), read_shards(files, content)
            if command != kind.command:
                other = f"{files.address!r} is a run of `nti-batch {command}`"
                raise ValueError(f"{other}: give the --output.dir of `nti-batch {kind.command}`")
            content.expect_all_read()
            if not files.is_shared and not (files.root / kind.folder).exists():
                raise ValueError(
                    f"{files.address!r} is no run of `nti-batch {kind.command}`: it has no folder {kind.folder!r}; "
                    "give the --output.dir of one"
                )
            return cls(kind, files, kind.read_settings(settings), shards)

    def _write(self, known: Shards | None) -> bool:
        """Write `run.json`, if shards are new to those that are known; return False if another start was first."""
        added = {name: url for name, url in self.shards.items() if known is None or known.get(name) != url}
        if known is not None and not added:
            return True
        text = run_text(self.files.address, self.kind.command, self.settings.to_json(), self.shards)
        return self.files.put_run(text, added, is_new=known is None)

    @property
    def name(self) -> str:
        """Name of the folder, or the last part of the address."""
        return Path(self.files.address).resolve().name

    def _part(self, unit: WorkUnit, number: int) -> Path:
        return self.folder / f"{unit.name}.{number:05d}.tar"

    def _stem(self, unit: WorkUnit) -> str:
        return f"{self.kind.folder}/{unit.name}"

    def manifests(self, unit: WorkUnit) -> list[Path]:
        """Manifests of a work unit by their numbers, which have no gap."""
        return self.files.manifests(self._stem(unit))

    def parts(self, unit: WorkUnit) -> list[StoredPart[AnyRow]]:
        """Committed parts of a work unit."""
        return stored_parts(self.files, self.manifests(unit), self.kind.row_type)

    def all_parts(self) -> Iterator[StoredPart[AnyRow]]:
        """Committed parts of the run, in the order of their names."""
        manifests = sorted(self.files.all_manifests(self.kind.folder))
        for _, of_unit in itertools.groupby(manifests, key=lambda path: path.stem.rpartition(".")[0]):
            yield from stored_parts(self.files, of_unit, self.kind.row_type)

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
        part = self.files.next_part(self._stem(unit))

        def commit(manifest: Manifest[AnyRow]) -> None:
            try:
                if not self.files.commit(self._stem(unit), part, manifest):
                    self._commit_rest(unit, part, manifest)
            except ValueError as error:  # a file of another job is damaged
                raise OutputError(str(error)) from error

        return PartWriter(self.kind, self.settings, part, origin, self._generations.get(unit, {}), commit)

    def _commit_rest(self, unit: WorkUnit, part: Path, manifest: Manifest[AnyRow]) -> None:
        """Commit the records of a part that other jobs have not committed meanwhile."""
        rescued = part.with_suffix(".tar.salvage")
        failed = [row for row in manifest.rows if row.status != "done"]
        if manifest.tar is not None:
            os.replace(part, rescued)
            self._commit_members(rescued, unit)
            rescued.unlink()
        committed = {row.id: row.generation for row in self.rows(unit)}
        left = [row for row in failed if row.generation > committed.get(row.id, -1)]
        if left:
            writer = self.new_part(unit, manifest.origin)
            writer.add_rows(left)
            writer.commit()

    def claim(self, unit: WorkUnit) -> list[AnyRow]:
        """Claim a work unit until `release` or the end of this process, and commit what a killed job finished in it.

        Returns:
            The unit's rows that count.

        Raises:
            UnitInUseError: If another process holds it.
        """
        self.files.claim(self._stem(unit))
        self._generations[unit] = {}
        self.salvage(unit)
        rows = self.rows(unit)
        self._generations[unit] = {row.id: row.generation + 1 for row in rows}
        return rows

    def release(self, unit: WorkUnit) -> None:
        """Release a claimed work unit, whose open part must be committed."""
        del self._generations[unit]
        self.files.release(self._stem(unit))

    def release_all(self) -> None:
        """Release all claimed work units."""
        for unit in list(self._generations):
            self.release(unit)

    def salvage(self, unit: WorkUnit) -> int:
        """Commit what a killed job finished but did not commit; return the number of records."""
        number, part = len(self.manifests(unit)), self.files.next_part(self._stem(unit))
        unfinished, rescued = part.with_suffix(".tar.tmp"), part.with_suffix(".tar.salvage")
        saved = 0
        with translate_os_errors(part):
            for left in (rescued, unfinished, part):
                if left.exists() and not part.with_suffix(".jsonl").exists():
                    os.replace(left, rescued)
                    saved += self._commit_members(rescued, unit)
                    # another job's commit meanwhile has removed it
                    rescued.unlink(missing_ok=True)
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
        self.files.put(self._complete(unit), json.dumps(mark.to_json()) + "\n")

    def complete_mark(self, unit: WorkUnit) -> CompleteMark | None:
        """The mark of a complete work unit; None if nothing marks it.

        Raises:
            ValueError: If the mark is damaged.
        """
        path = self.files.path(self._complete(unit))
        try:
            with shown_errors(self.files.shown):
                return CompleteMark.from_json(JsonObject.read(path, MAX_MARK_BYTES))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{error}; remove it, and run the job again") from error

    def _complete(self, unit: WorkUnit) -> str:
        return f"{self._stem(unit)}.complete"


AnyRun = OutputRun[Any, Any, Any]
