"""The output of a job: the only file that writes there. A part holds inversions, or edited pictures.

    OUT/run.json                               settings that change results
    OUT/<folder>/<shard>.<k>of<n>.<part>.tar   two members for each record, <name>.<ending> and <name>.json
    OUT/<folder>/<shard>.<k>of<n>.<part>.jsonl the manifest: a row for each record, done or failed
    OUT/<folder>/<shard>.<k>of<n>.lock         who is at it
    OUT/log/                                   for people: see `job_log` and `progress`

A record is committed when a manifest names it. A part grows as `.tar.tmp`; to commit it, it is synced and renamed,
and then its manifest is written beside it and renamed: so a manifest never names what is not on disk. What a dead
job left behind is salvaged record by record, since each carries its checksum.
"""

import itertools
import json
import logging
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Generic

from nti_batch.files import atomic_write, check_writable, translate_os_errors
from nti_batch.lock import UnitLock
from nti_batch.output.manifest import AnyRow, Json, Manifest
from nti_batch.output.part import PartWriter, Record, read_members
from nti_batch.records import WorkUnit


class OutputRun(ABC, Generic[Record, AnyRow]):
    """An output folder."""

    command: ClassVar[str]
    """That makes such a run."""

    folder_name: ClassVar[str]
    ending: ClassVar[str]
    """Of the member beside each record's `.json`."""

    row_type: type[AnyRow]

    def __init__(self, out: Path) -> None:
        """Look at the folder; nothing is read or written yet."""
        self.out = out
        self.folder = out / self.folder_name
        self.run_file = out / "run.json"
        self._settings: dict[str, Json] | None = None
        self._locks: dict[WorkUnit, UnitLock] = {}

    @abstractmethod
    def pack(self, record: Record) -> tuple[bytes, dict[str, Json]]:
        """The two members of a record: the content of one, and metadata with its checksum and what made it."""

    @abstractmethod
    def finish(self, unit: WorkUnit, records: int) -> None:
        """Take note that all records of a work unit are committed, so many."""

    def create(self, settings: dict[str, Json], shards: list[str], dry_run: bool = False) -> None:
        """Start the run, or continue it with the same settings; shards may be added.

        Args:
            settings: That change results.
            shards: The input.
            dry_run: Write nothing, and refuse what would be refused.

        Raises:
            ValueError: If the folder cannot be written, or holds a run with other settings.
        """
        try:
            if self.run_file.exists():
                known_settings, known = self._run()
                _refuse_other_settings(self.out, known_settings, settings)
                shards = list(dict.fromkeys([*known, *shards]))
                if shards == known:
                    return
            if dry_run:
                check_writable(self.folder)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"settings": settings, "shards": shards}, indent=2) + "\n"
            # every rank writes it; all else belongs to one process
            atomic_write(self.run_file, text, f".{socket.gethostname()}.{os.getpid()}.tmp")
        except OSError as error:
            raise ValueError(
                f"output folder {str(self.out)!r} cannot be written: {error.strerror}; give another --output.dir"
            ) from error

    def _run(self) -> tuple[dict[str, Json], list[str]]:
        for needed in (self.run_file, self.folder):
            if not needed.exists():
                raise ValueError(
                    f"{str(self.out)!r} is no run of `nti-batch {self.command}`: it has no {needed.name!r}; "
                    "give the --output.dir of one"
                )
        try:
            run = json.loads(self.run_file.read_text(encoding="utf-8"))
            settings, shards = run["settings"], run["shards"]
            if type(settings["data.units_per_shard"]) is not int or not all(isinstance(url, str) for url in shards):
                raise ValueError("data.units_per_shard is no whole number, or a shard no text")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.run_file} is damaged: {error}") from error
        return settings, shards

    def settings(self) -> dict[str, Json]:
        """What the run was created with."""
        if self._settings is None:
            self._settings, _ = self._run()
        return self._settings

    def shards(self) -> list[str]:
        """The input shards that the run has been given."""
        _, shards = self._run()
        return shards

    def _part(self, unit: WorkUnit, number: int) -> Path:
        return self.folder / f"{unit.name}.{number:05d}.tar"

    def manifests(self, unit: WorkUnit) -> list[Path]:
        """Those of a work unit, which are numbered without a gap: to list a folder of millions would take long."""
        numbered = (self._part(unit, number).with_suffix(".jsonl") for number in itertools.count())
        return list(itertools.takewhile(Path.exists, numbered))

    def located_rows(self, unit: WorkUnit) -> Iterator[tuple[Path, AnyRow]]:
        """What is committed of a work unit, each row with its manifest; the rows of one are in memory at a time."""
        for path in self.manifests(unit):
            yield from ((path, row) for row in Manifest.read(path, self.row_type).rows)

    def rows(self, unit: WorkUnit) -> list[AnyRow]:
        """What is committed of a work unit."""
        return [row for _, row in self.located_rows(unit)]

    def new_part(self, unit: WorkUnit) -> PartWriter[Record, AnyRow]:
        """Start the unit's next part."""
        return PartWriter(self, self._part(unit, len(self.manifests(unit))))

    def lock(self, unit: WorkUnit) -> None:
        """Claim a work unit until `release` or the end of this process.

        Raises:
            UnitInUseError: If another process is at it.
        """
        path = self.folder / f"{unit.name}.lock"
        with translate_os_errors(path):
            self._locks[unit] = UnitLock(path)

    def release(self, unit: WorkUnit) -> None:
        """Give a claimed work unit back; its open part must be committed."""
        self._locks.pop(unit).release()

    def release_all(self) -> None:
        """Give back what is still claimed."""
        for unit in list(self._locks):
            self.release(unit)

    def salvage(self, unit: WorkUnit) -> int:
        """Commit what a dead job finished but did not commit; return the number of records."""
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
                # its job died between the commit and this
                self._part(unit, number - 1).with_suffix(".tar.salvage").unlink(missing_ok=True)
        return saved

    def _commit_members(self, left: Path, unit: WorkUnit) -> int:
        committed = {row.id for row in self.rows(unit)}
        part = self.new_part(unit)
        try:
            for payload, metadata in read_members(left):
                name = self.row_type.of_metadata(metadata).id
                if name not in committed:
                    part.add_packed(payload, metadata)
                    committed.add(name)
        except ValueError:
            # the cut is where the job died; what stands before it is whole
            logging.getLogger(__name__).info("%s ends where its job died; %d records saved", left, len(part.rows))
        part.commit()
        return len(part.rows)

    def has_failures(self, unit: WorkUnit) -> bool:
        """Whether a record of the unit, or its shard, is committed as failed."""
        return any(row.status == "failed" for row in self.rows(unit))

    def forget_failures(self, unit: WorkUnit) -> None:
        """Take the rows of failed records out of the manifests, so that these are missing again."""
        with translate_os_errors(self.folder):
            for path in self.manifests(unit):
                manifest = Manifest.read(path, self.row_type)
                done = [row for row in manifest.rows if row.status == "done"]
                if len(done) < len(manifest.rows):
                    atomic_write(path, Manifest(done, manifest.part_sha256).text())


def _refuse_other_settings(out: Path, known: dict[str, Json], asked: dict[str, Json]) -> None:
    differences = [
        f"{name}: {json.dumps(known.get(name))} there, {json.dumps(asked.get(name))} now"
        for name in sorted({*known, *asked})
        if known.get(name) != asked.get(name)
    ]
    if differences:
        raise ValueError(
            f"{str(out)!r} holds a run with other settings ({'; '.join(differences)}): "
            "ask for the same settings, or give another --output.dir"
        )
