"""One output part: writing and reading a tar of records."""

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Generic

from nti_batch.data.tar import Header
from nti_batch.files import open_regular, sync_folder, translate_os_errors
from nti_batch.output.manifest import MAX_MANIFEST_BYTES, Manifest
from nti_batch.output.manifest_rows import AnyRow, Metadata, member_name
from nti_batch.output.origin import Origin
from nti_batch.output.run_kind import AnyRecord, AnySettings, RunKind
from nti_batch.records import Failure, WorkUnit

DAMAGE = (tarfile.TarError, OSError, KeyError, TypeError, ValueError, RecursionError)
"""Errors that reading a damaged part can raise."""

MAX_MEMBER_BYTES = 1 << 28
"""Largest member of a part."""


class PartWriter(Generic[AnyRecord, AnyRow, AnySettings]):
    """One output part of a work unit, from its first record to its commit."""

    def __init__(
        self,
        kind: RunKind[AnyRecord, AnyRow, AnySettings],
        settings: AnySettings,
        part: Path,
        origin: Origin,
        generations: Mapping[str, int],
        commit: Callable[[Manifest[AnyRow]], None],
    ) -> None:
        """Write nothing yet: the first record makes the file.

        Args:
            kind: Kind of the run.
            settings: Settings of the run.
            part: Path of the finished tar.
            origin: What makes the part.
            generations: Generation of the next row of each record that has rows; 0 for others.
            commit: Commits the manifest of the finished tar.
        """
        self.kind, self.part, self.origin = kind, part, origin
        self.started = time.monotonic()
        self.rows: list[AnyRow] = []
        self._row_bytes = 0
        self._settings, self._generations, self._commit = settings, generations, commit
        self._checksum = hashlib.sha256()
        self._unfinished = part.with_name(part.name + ".tmp")
        self._file: io.FileIO | None = None

    def add(self, record: AnyRecord) -> None:
        """Append the two members of a record and hand them to the operating system.

        Raises:
            OutputError: If they cannot be written; the part then holds what it held before.
        """
        payload, metadata = self.kind.encode(record, self._settings)
        generation = self._generations.get(member_name(record.key, record.name), 0)
        self.add_encoded(payload, {**metadata, "generation": generation, "origin": self.origin.to_json()})

    def add_encoded(self, payload: bytes, metadata: Metadata) -> None:
        """Append a record in its stored form, as `add` does."""
        text = json.dumps(metadata).encode()
        row = self.kind.row_type.of_metadata(metadata, hashlib.sha256(text).hexdigest())
        members = (f"{row.id}{self.kind.suffix}", payload), (f"{row.id}.json", text)
        with translate_os_errors(self.part):
            if self._file is None:
                self._file = open(self._unfinished, "wb", buffering=0)  # noqa: SIM115 (it lives until the commit)
            self._write(b"".join(_tar_member(name, content) for name, content in members))
        self._append(row)

    def add_failure(self, failure: Failure) -> None:
        """Append the row of a failed record, which has no members."""
        self._add_row(self.kind.row_type.of_failure(failure))

    def add_recovery(self, unit: WorkUnit) -> None:
        """Append the row of a damaged shard that has now been read whole."""
        self._add_row(self.kind.row_type.of_recovery(unit))

    def add_rows(self, rows: Iterable[AnyRow]) -> None:
        """Append rows without members, as they are."""
        for row in rows:
            self._append(row)

    def _add_row(self, row: AnyRow) -> None:
        self._append(replace(row, generation=self._generations.get(row.id, 0)))

    def _append(self, row: AnyRow) -> None:
        self.rows.append(row)
        self._row_bytes += len(json.dumps(row.to_json()))

    @property
    def is_full(self) -> bool:
        """Whether the manifest has half the size that a reader allows."""
        return self._row_bytes > MAX_MANIFEST_BYTES // 2

    def commit(self) -> None:
        """Finish the tar and write the manifest that names its records.

        Raises:
            OutputError: If they cannot be written; the part is then not committed, and a later job salvages it.
        """
        if not self.rows:
            self.close()
            return
        with translate_os_errors(self.part):
            if self._file is not None:
                with self._file:
                    self._write(bytes(2 * tarfile.BLOCKSIZE))
                    os.fsync(self._file.fileno())
                os.replace(self._unfinished, self.part)
                sync_folder(self.part.parent)
            tar, checksum = (self.part, self._checksum.hexdigest()) if self._file else (None, "")
            self._commit(Manifest(self.rows, tar, checksum, self.origin))

    def close(self) -> None:
        """Leave the part uncommitted: a later job salvages it."""
        if self._file is not None:
            self._file.close()

    def _write(self, content: bytes) -> None:
        """Write all of the content or, on a full disk, nothing."""
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
    """A member as it stands in a tar: header, content, padding."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def read_members(part: Path) -> Iterator[tuple[bytes, Metadata]]:
    """Read the records of a part in order, in their stored form, and compare each with its checksum.

    Raises:
        ValueError: If a member is damaged or missing; the records before it have been yielded.
    """
    payloads: dict[str, bytes] = {}
    try:
        with open_regular(part) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar:
            for member in tar:
                stem, _, suffix = member.name.rpartition(".")
                if suffix == "json":
                    payload, metadata = payloads.pop(stem), json.loads(_content(tar, member))
                    _check_record(stem, payload, metadata)
                    yield payload, metadata
                elif payloads:
                    raise ValueError(f"no .json for {', '.join(payloads)}")
                else:
                    payloads[stem] = _content(tar, member)
    except DAMAGE as error:
        raise ValueError(f"{part} is damaged: {error}") from error
    if payloads:
        raise ValueError(f"{part} is damaged: no .json for {', '.join(payloads)}")


def _check_record(stem: str, payload: bytes, metadata: Metadata) -> None:
    key = metadata["key"]
    if stem != member_name(metadata["key"], metadata.get("name", "")):  # type: ignore[arg-type]
        raise ValueError(f"the members {stem!r} are about {key!r}")
    if hashlib.sha256(payload).hexdigest() != metadata["sha256"]:
        raise ValueError(f"the content of {key!r} does not have the checksum in its .json")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.issparse() or member.size > MAX_MEMBER_BYTES:
        raise ValueError(f"{member.name!r} has {member.size:,} bytes, allowed: {MAX_MEMBER_BYTES:,}, not sparse")
    file = tar.extractfile(member)
    return file.read() if file else b""


def read_metadata(part: Path, stems: Collection[str]) -> Iterator[Metadata]:
    """Read the `.json` members of some records. Nothing else is read, so no checksum is compared.

    Args:
        part: Path of the tar.
        stems: Stems of the members.

    Raises:
        DAMAGE: If the part cannot be read.
    """
    with open_regular(part) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar:
        for member in tar:
            stem, _, suffix = member.name.rpartition(".")
            if suffix == "json" and stem in stems:
                yield json.loads(_content(tar, member))
