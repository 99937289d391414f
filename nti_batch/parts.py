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

import dataclasses
import errno
import hashlib
import io
import itertools
import json
import logging
import os
import socket
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, ClassVar, Generic, TypeVar

from nti_batch.archive import Header
from nti_batch.lock import UnitLock
from nti_batch.manifest import AnyRow, Json, Manifest, member_name
from nti_batch.records import Failure, WorkUnit

Record = TypeVar("Record")
DAMAGE = (tarfile.TarError, OSError, KeyError, TypeError, ValueError, RecursionError)
"""What reading a damaged part raises."""


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_beside(path: Path, text: str) -> None:
    """Write a file that readers find whole or not at all; a power cut may take it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


@contextmanager
def appearing(path: Path, ending: str = ".tmp") -> Iterator[BinaryIO]:
    """A file to write that appears whole or not at all, and survives a power cut once it has appeared."""
    beside = path.with_name(path.name + ending)
    with open(beside, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    _sync_folder(path.parent)


def write_whole(path: Path, content: str | bytes, ending: str = ".tmp") -> None:
    """Write a file that appears whole or not at all, and survives a power cut once it has appeared."""
    with appearing(path, ending) as file:
        file.write(content.encode() if isinstance(content, str) else content)


class OutputError(Exception):
    """The output folder cannot be written."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Say which file an error of the operating system is about, and what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; what is committed stays readable: "
            "make room or mend the folder, and run the same command again"
        ) from error


class PartWriter(Generic[Record, AnyRow]):
    """One output part of a work unit, from its first record to its commit."""

    def __init__(self, run: "OutputRun[Record, AnyRow]", part: Path) -> None:
        """Write nothing yet; the file is made with the first record.

        Args:
            run: The part's.
            part: The tar to be.
        """
        self.run = run
        self.part = part
        self.started = time.monotonic()
        self.rows: list[AnyRow] = []
        self._checksum = hashlib.sha256()
        self._unfinished = part.with_name(part.name + ".tmp")
        self._file: io.FileIO | None = None

    def add(self, record: Record) -> None:
        """Append the two members and hand them to the operating system.

        Raises:
            OutputError: If they cannot be written; the part holds what it held before.
        """
        self.add_packed(*self.run.pack(record))

    def add_packed(self, payload: bytes, metadata: dict[str, Json]) -> None:
        """Append a record in its stored form, as `add` does."""
        text = json.dumps(metadata).encode()
        row = dataclasses.replace(self.run.row_type.of_metadata(metadata), json_sha256=hashlib.sha256(text).hexdigest())
        members = (f"{row.id}{self.run.ending}", payload), (f"{row.id}.json", text)
        with named(self.part):
            if self._file is None:
                self._file = open(self._unfinished, "wb", buffering=0)  # noqa: SIM115 (it lives until the commit)
            self._write(b"".join(_tar_member(name, content) for name, content in members))
        self.rows.append(row)

    def add_failure(self, failure: Failure) -> None:
        """Note a failed record; it has a row and no members."""
        self.rows.append(self.run.row_type.of_failure(failure))

    def commit(self) -> None:
        """Make the part whole and name its records in a manifest.

        Raises:
            OutputError: If it cannot be written; the part is not committed, and a later job salvages it.
        """
        if not self.rows:
            self.close()
            return
        with named(self.part):
            if self._file is not None:
                with self._file:
                    self._write(bytes(2 * tarfile.BLOCKSIZE))
                    os.fsync(self._file.fileno())
                os.replace(self._unfinished, self.part)
                _sync_folder(self.part.parent)
            part_sha256 = self._checksum.hexdigest() if self._file else ""
            write_whole(self.part.with_suffix(".jsonl"), Manifest(self.rows, part_sha256).text())

    def close(self) -> None:
        """Leave it uncommitted: a later job salvages it."""
        if self._file is not None:
            self._file.close()

    def _write(self, content: bytes) -> None:
        """Write all of it or, on a full disk, nothing."""
        assert self._file is not None
        end, rest = self._file.tell(), memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(end)
            self._file.seek(end)
            raise
        self._checksum.update(content)


def _tar_member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


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
                _check_writable(self.folder)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"settings": settings, "shards": shards}, indent=2) + "\n"
            # every rank writes it; all else belongs to one process
            write_whole(self.run_file, text, f".{socket.gethostname()}.{os.getpid()}.tmp")
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
            if type(settings["data.slices"]) is not int or not all(isinstance(url, str) for url in shards):
                raise ValueError("data.slices is no whole number, or a shard no text")
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
        with named(path):
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
        with named(part):
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
        with named(self.folder):
            for path in self.manifests(unit):
                manifest = Manifest.read(path, self.row_type)
                done = [row for row in manifest.rows if row.status == "done"]
                if len(done) < len(manifest.rows):
                    write_whole(path, Manifest(done, manifest.part_sha256).text())


def _check_writable(folder: Path) -> None:
    """Raise the OSError that making this folder and a file there would, as far as that is known without trying."""
    there = existing_ancestor(folder)
    if not there.is_dir():
        raise OSError(code := errno.EEXIST if there == folder else errno.ENOTDIR, os.strerror(code))
    if not os.access(there, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        raise OSError(code := errno.EROFS if is_read_only else errno.EACCES, os.strerror(code))


def existing_ancestor(path: Path) -> Path:
    """The path itself, or what there is of the way to it."""
    return next(there for there in (path, *path.parents) if there.exists())


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


def locate_members(part: Path) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of each member's content, by name; of the part the headers are read.

    Raises:
        ValueError: If they are damaged, naming the part.
    """
    try:
        with tarfile.open(part, "r:", tarinfo=Header) as tar:
            return {member.name: (member.offset_data, member.size) for member in tar}
    except (tarfile.TarError, OSError, ValueError) as error:
        raise ValueError(f"{part} is damaged: {error}") from error


def read_members(part: Path) -> Iterator[tuple[bytes, dict[str, Json]]]:
    """The records of a part in order, in their stored form, each checked against its checksum.

    Raises:
        ValueError: Where a member is damaged or missing; those before it have been yielded.
    """
    payloads: dict[str, bytes] = {}
    try:
        with tarfile.open(part, "r:", tarinfo=Header) as tar:
            for member in tar:
                stem, _, kind = member.name.rpartition(".")
                stream = tar.extractfile(member)
                content = stream.read() if stream else b""
                if kind == "json":
                    payload, metadata = payloads.pop(stem), json.loads(content)
                    if stem != member_name(metadata["key"], metadata.get("name", "")):
                        raise ValueError(f"{member.name!r} is about {metadata['key']!r}")
                    if hashlib.sha256(payload).hexdigest() != metadata["sha256"]:
                        raise ValueError(
                            f"what is stored of {metadata['key']!r} does not have the checksum in its .json"
                        )
                    yield payload, metadata
                else:
                    payloads[stem] = content
    except DAMAGE as error:
        raise ValueError(f"{part} is damaged: {error}") from error
    if payloads:
        raise ValueError(f"{part} is damaged: no .json for {', '.join(payloads)}")


def read_metadata(part: Path, names: Collection[str]) -> Iterator[dict[str, Json]]:
    """The `.json` members of these records; nothing else is read, so no checksum is compared.

    Raises:
        DAMAGE: If the part cannot be read.
    """
    with tarfile.open(part, "r:", tarinfo=Header) as tar:
        for member in tar:
            stem, _, kind = member.name.rpartition(".")
            if kind == "json" and stem in names:
                stream = tar.extractfile(member)
                yield json.loads(stream.read() if stream else b"")
