"""An output folder: its `run.json`, and which records of each work unit are committed.

    OUT/run.json                                settings that change results, and the input shards
    OUT/<folder>/<shard>.<k>of<n>.<part>.tar    two members for each record: <name>.<suffix> and <name>.json
    OUT/<folder>/<shard>.<k>of<n>.<part>.jsonl  the manifest: a row for each record, done or failed
    OUT/<folder>/<shard>.<k>of<n>.complete      number of rows, once no image of the work unit is missing
    OUT/<folder>/<shard>.<k>of<n>.lock          the process that works on the unit
    OUT/log/                                    log files and numbers of each rank

A record is committed when a manifest names it. A part grows as `.tar.tmp`. Its commit syncs and renames the tar, then
writes the manifest beside it in the same way: a manifest never names what is not on disk. A later job salvages what a
killed job left behind record by record, since each carries its checksum.
"""

import itertools
import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Self

from nti_batch.files import atomic_write, check_writable, translate_os_errors
from nti_batch.json_object import Json, JsonObject
from nti_batch.lock import UnitLock
from nti_batch.output.format_version import check_format_version, format_versions
from nti_batch.output.manifest import Manifest
from nti_batch.output.manifest_rows import AnyRow
from nti_batch.output.part import PartWriter, read_members
from nti_batch.output.run_kind import AnyRecord, AnySettings, RunKind
from nti_batch.records import WorkUnit
from nti_batch.settings import flatten

logger = logging.getLogger(__name__)
RUN_FILE = "run.json"


class OutputRun(Generic[AnyRecord, AnyRow, AnySettings]):
    """An output folder with its settings."""

    def __init__(
        self,
        kind: RunKind[AnyRecord, AnyRow, AnySettings],
        out: Path,
        settings: AnySettings,
        shards: Sequence[str],
    ) -> None:
        """Take what `run.json` holds; `create` and `open` make such an object.

        Args:
            kind: Kind of the run.
            out: The output folder.
            settings: Settings that change results.
            shards: Addresses of all input shards that the run was given.
        """
        self.kind, self.out, self.settings, self.shards = kind, out, settings, list(shards)
        self.folder = out / kind.folder
        self._locks: dict[WorkUnit, UnitLock] = {}

    @classmethod
    def create(
        cls,
        kind: RunKind[AnyRecord, AnyRow, AnySettings],
        out: Path,
        settings: AnySettings,
        shards: Sequence[str],
        dry_run: bool = False,
    ) -> Self:
        """Start a run, or resume it with the same settings; shards may be added.

        Args:
            kind: Kind of the run.
            out: The output folder.
            settings: Settings that change results.
            shards: Addresses of the input shards.
            dry_run: Write nothing, and raise what a real start would raise.

        Raises:
            ValueError: If the folder cannot be written, or holds a run with other settings.
        """
        run = cls(kind, out, settings, shards)
        try:
            if (out / RUN_FILE).exists():
                known = cls.open(kind, out)
                _refuse_other_settings(out, known.settings.to_json(), settings.to_json())
                run = cls(kind, out, settings, list(dict.fromkeys([*known.shards, *shards])))
                if run.shards == known.shards:
                    return run
            if dry_run:
                check_writable(run.folder)
            else:
                run._write()
        except OSError as error:
            raise ValueError(
                f"output folder {str(out)!r} cannot be written: {error.strerror}; give another --output.dir"
            ) from error
        return run

    @classmethod
    def open(cls, kind: RunKind[AnyRecord, AnyRow, AnySettings], out: Path) -> Self:
        """Read an existing run.

        Raises:
            ValueError: If the folder is no run of this kind, or `run.json` is damaged or of a newer version.
        """
        content = read_run_file(out, kind.command)
        command = content.choice("command", ("invert", "edit"))
        settings, shards = content.section("settings"), content.texts("shards")
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
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            **format_versions(),
            "command": self.kind.command,
            "settings": self.settings.to_json(),
            "shards": self.shards,
        }
        # every rank writes this file; each other file belongs to one process
        suffix = f".{socket.gethostname()}.{os.getpid()}.tmp"
        atomic_write(self.out / RUN_FILE, json.dumps(content, indent=2) + "\n", suffix)

    def _part(self, unit: WorkUnit, number: int) -> Path:
        return self.folder / f"{unit.name}.{number:05d}.tar"

    def manifests(self, unit: WorkUnit) -> list[Path]:
        """Manifests of a work unit. Their numbers have no gap: listing a folder of millions of files takes long."""
        numbered = (self._part(unit, number).with_suffix(".jsonl") for number in itertools.count())
        return list(itertools.takewhile(Path.exists, numbered))

    def located_rows(self, unit: WorkUnit) -> Iterator[tuple[Path, AnyRow]]:
        """Committed rows of a work unit, each with its manifest; one manifest at a time is in memory."""
        for path in self.manifests(unit):
            yield from ((path, row) for row in Manifest.read(path, self.kind.row_type).rows)

    def rows(self, unit: WorkUnit) -> list[AnyRow]:
        """Committed rows of a work unit."""
        return [row for _, row in self.located_rows(unit)]

    def all_manifests(self) -> list[Path]:
        """Manifests of the run, in the order of their names."""
        return sorted(self.folder.glob("*.jsonl"))

    def new_part(self, unit: WorkUnit) -> PartWriter[AnyRecord, AnyRow, AnySettings]:
        """Start the next part of a work unit."""
        return PartWriter(self.kind, self.settings, self._part(unit, len(self.manifests(unit))))

    def lock(self, unit: WorkUnit) -> None:
        """Claim a work unit until `release` or the end of this process.

        Raises:
            UnitInUseError: If another process holds it.
        """
        path = self.folder / f"{unit.name}.lock"
        with translate_os_errors(path):
            self._locks[unit] = UnitLock(path)

    def release(self, unit: WorkUnit) -> None:
        """Release a claimed work unit, whose open part must be committed."""
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
        committed = {row.id for row in self.rows(unit)}
        part = self.new_part(unit)
        try:
            for payload, metadata in read_members(left):
                record_id = self.kind.row_type.of_metadata(metadata, "").id
                if record_id not in committed:
                    part.add_encoded(payload, metadata)
                    committed.add(record_id)
        except ValueError:
            # the killed job stopped writing here; all records before this place are whole
            logger.info("%s is cut; %d records were salvaged", left, len(part.rows))
        part.commit()
        return len(part.rows)

    def has_failures(self, unit: WorkUnit) -> bool:
        """Whether a record of the unit, or its shard, is committed as failed."""
        return any(row.status == "failed" for row in self.rows(unit))

    def forget_failures(self, unit: WorkUnit) -> None:
        """Remove the rows of failed records from the manifests, so that these records are missing again."""
        with translate_os_errors(self.folder):
            self._complete(unit).unlink(missing_ok=True)
            for path in self.manifests(unit):
                manifest = Manifest.read(path, self.kind.row_type)
                done = [row for row in manifest.rows if row.status == "done"]
                if len(done) < len(manifest.rows):
                    atomic_write(path, Manifest(done, manifest.part_sha256).text())

    def finish(self, unit: WorkUnit, records: int) -> None:
        """Mark a work unit of a closed kind as complete, so that its input need not be read again.

        Args:
            unit: Work unit without missing records.
            records: Number of its rows.
        """
        if self.kind.is_closed:
            path = self._complete(unit)
            with translate_os_errors(path):
                atomic_write(path, json.dumps({"images": records}) + "\n")

    def is_complete(self, unit: WorkUnit) -> bool:
        """Whether the unit is marked as complete."""
        return self._complete(unit).exists()

    def rows_when_complete(self, unit: WorkUnit) -> int:
        """Number of rows that `finish` recorded.

        Raises:
            ValueError: If the mark is damaged.
        """
        path = self._complete(unit)
        try:
            return JsonObject(json.loads(path.read_bytes()), path).integer("images", 0, 1 << 62)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def _complete(self, unit: WorkUnit) -> Path:
        return self.folder / f"{unit.name}.complete"


AnyRun = OutputRun[Any, Any, Any]


def read_run_file(out: Path, command: str = "invert") -> JsonObject:
    """Content of `run.json`, checked for its version.

    Args:
        out: The output folder.
        command: Command whose run is expected, for the error message.

    Raises:
        ValueError: If the folder has no `run.json`, or it is damaged or of a newer version.
    """
    path = out / RUN_FILE
    try:
        content = JsonObject(json.loads(path.read_bytes()), path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{str(out)!r} is no run of `nti-batch {command}`: it has no {RUN_FILE!r}; give the --output.dir of one"
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    check_format_version(content)
    return content


def _refuse_other_settings(out: Path, known: dict[str, Json], asked: dict[str, Json]) -> None:
    there, now = flatten(known), flatten(asked)
    differences = [
        f"{flag}: {json.dumps(there[flag])} there, {json.dumps(now[flag])} now"
        for flag in there
        if there[flag] != now[flag]
    ]
    if differences:
        raise ValueError(
            f"{str(out)!r} holds a run with other settings ({'; '.join(differences)}): "
            "ask for the same settings, or give another --output.dir"
        )
