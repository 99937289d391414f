"""A run in an object store, and its copy on the local disk (docs/protocol.md).

Manifests never change, so each is copied once. A part grows in the copy as in a folder, and is put when it is
committed: what a killed job left there is salvaged by the next job on this disk.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from nti_batch.files import check_writable, translate_os_errors
from nti_batch.lock import UnitLock
from nti_batch.output.bucket import Bucket
from nti_batch.output.claims import Claims
from nti_batch.output.manifest import Manifest
from nti_batch.output.run_files import RUN_FILE, AnyManifest

MAX_ENTRIES = 1 << 17
"""Most entries of a log, against a number that never ends."""

DOWNLOADS = 16
"""Manifests that are copied at the same time."""


def default_spool() -> Path:
    """Folder of the copies of all runs."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "nti_batch" / "runs"


class BucketFiles:
    """A run in an object store. Jobs share its work units; a put if absent commits a part."""

    is_shared = True

    def __init__(self, address: str, spool: str | None = None) -> None:
        """Look for the run.

        Args:
            address: Address of the run.
            spool: Local folder for copies of runs, and for what is finished and not committed.

        Raises:
            ValueError: If the store cannot be used.
            OutputError: If it does not answer.
        """
        self.address, self._spool = address, Path(spool) if spool else default_spool()
        self.bucket = Bucket(address)
        self._locks: dict[str, UnitLock] = {}
        self._claims = Claims(self.bucket)
        self._listed: dict[str, set[str]] | None = None
        """Names by folder, once there is a snapshot."""

        self._newest: dict[str, tuple[int, dict[str, int]]] = {}
        """Number of manifests that were read of a work unit, and the last generation of each of its records."""

        self.root = self._copy()

    def _copy(self) -> Path:
        """The folder of the copy: another run that has been created at this address has another one."""
        created = self.bucket.put_time(RUN_FILE)
        checksum = hashlib.sha256(f"{self.address} {created and created.isoformat()}".encode()).hexdigest()
        return self._spool / f"{re.sub('[^A-Za-z0-9]+', '-', self.address)[-60:]}-{checksum[:16]}"

    def shown(self, text: str) -> str:
        """The text with addresses in place of the paths of copies."""
        return text.replace(f".{os.getpid()}.tmp", "").replace(str(self.root), self.address)

    def publish(self, path: Path) -> None:
        """Put a file under its name in the copy."""
        self.bucket.put(path.relative_to(self.root).as_posix(), path)

    def remove_older(self, address: str, hours: float) -> bool:
        """Remove an object if it is older than this, by the clock of the store."""
        name = address.removeprefix(f"{self.address}/")
        put = self.bucket.put_time(name)
        is_old = put is not None and self._claims.now() - put > timedelta(hours=hours)
        if is_old:
            self.bucket.remove(name)
        return is_old

    def snapshot(self) -> None:
        """List all files, and copy the manifests that are new."""
        self._listed = {}

    def path(self, name: str) -> Path:
        """Copy a small file."""
        path, content = self.root / name, self.bucket.read(name)
        with translate_os_errors(path):
            if content is None:
                path.unlink(missing_ok=True)
            else:
                self._write(path, content)
        return path

    def _write(self, path: Path, content: bytes) -> None:
        """Write a file of the copy, which other processes may write at the same time."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        beside.write_bytes(content)
        os.replace(beside, path)

    def put(self, name: str, text: str) -> None:
        """Write a small file, over another one."""
        self.bucket.put(name, text.encode())

    @contextmanager
    def creating(self, folder: str) -> Iterator[None]:
        """Check that the store can hold a run, and make the folders of the copy."""
        if self.bucket.put_time(RUN_FILE) is None:
            self.bucket.check_condition()
        yield
        with translate_os_errors(self.root):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def check_writable(self, folder: str) -> None:
        """Check that the copy can be written."""
        check_writable(self.root)

    def put_run(self, text: str, shards: Mapping[str, str], is_new: bool) -> bool:
        """Put `run.json`, or an entry with the shards that are new to it."""
        if is_new:
            is_first = self.bucket.put_if_absent(RUN_FILE, text.encode())
            self.root = self._copy()
            return is_first
        entry = _shard_entry(len(self.added_shards()))
        return self.bucket.put_if_absent(entry, json.dumps({"shards": dict(shards)}).encode())

    def added_shards(self) -> list[Path]:
        """Entries with the shards that were added."""
        entries: list[Path] = []
        for number in range(MAX_ENTRIES):
            path = self.path(_shard_entry(number))
            if not path.exists():
                break
            entries.append(path)
        return entries

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder of the run."""
        if self._listed is None:
            return set(self.bucket.list(folder))
        if folder not in self._listed:
            self._listed[folder] = set(self.bucket.list(folder))
        return self._listed[folder]

    def manifests(self, stem: str) -> list[Path]:
        """Manifests of a work unit; those that are new are copied."""
        found: list[Path] = []
        for number in range(MAX_ENTRIES):
            path = self._manifest(stem, number)
            if not path.exists() and not self._download(path):
                break
            found.append(path)
        return found

    def _manifest(self, stem: str, number: int) -> Path:
        return self.root / f"{stem}.{number:05d}.jsonl"

    def _download(self, path: Path) -> bool:
        """Copy a manifest; return whether there is one."""
        name = path.relative_to(self.root).as_posix()
        if self._listed is not None and path.name not in self.names(path.parent.name):
            return False
        content = self.bucket.read(name)
        if content is None:
            return False
        with translate_os_errors(path):
            self._write(path, content)
        return True

    def all_manifests(self, folder: str) -> list[Path]:
        """Manifests of all work units: one request lists a thousand, and those that are new are copied."""
        paths = [self.root / folder / name for name in self.names(folder) if name.endswith(".jsonl")]
        with ThreadPoolExecutor(DOWNLOADS) as threads:
            list(threads.map(self._download, (path for path in paths if not path.exists())))
        return paths

    def next_part(self, stem: str) -> Path:
        """Path of the next part's tar in the copy. It has no number: others may take the next one."""
        path = self.root / f"{stem}.spool.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def commit(self, stem: str, part: Path, manifest: AnyManifest) -> bool:
        """Put the tar, then the manifest under the first number that is absent once all others were read."""
        is_put = False
        while True:
            number, newest = self._read_new(stem, manifest)
            if any(row.generation <= newest.get(row.id, -1) for row in manifest.rows):
                return False
            if manifest.tar is not None and not is_put:
                name = f"{stem}.{manifest.tar_sha256[:16]}.tar"
                self.bucket.put(name, manifest.tar)
                manifest, is_put = replace(manifest, tar=self.root / name), True
            path = self._manifest(stem, number)
            if self.bucket.put_if_absent(path.relative_to(self.root).as_posix(), manifest.text().encode()):
                break
        with translate_os_errors(part):
            self._write(path, manifest.text().encode())
            part.unlink(missing_ok=True)
        return True

    def _read_new(self, stem: str, manifest: AnyManifest) -> tuple[int, dict[str, int]]:
        """Read the manifests of a work unit that are new: their number, and the last generation of each record."""
        number, newest = self._newest.get(stem, (0, {}))
        paths, row_type = self.manifests(stem), type(manifest.rows[0])
        for path in paths[number:]:
            for row in Manifest.read(path, row_type).rows:
                newest[row.id] = max(row.generation, newest.get(row.id, 0))
        self._newest[stem] = len(paths), newest
        return len(paths), newest

    @contextmanager
    def tar(self, path: Path) -> Iterator[Path]:
        """Copy a tar for a while."""
        copy = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with translate_os_errors(copy):
                self.bucket.download(path.relative_to(self.root).as_posix(), copy)
        except FileNotFoundError as error:
            raise ValueError(f"{self.address}/{path.relative_to(self.root)} is missing") from error
        try:
            yield copy
        except ValueError as error:
            raise ValueError(self.shown(str(error))) from error
        finally:
            copy.unlink(missing_ok=True)

    def claim(self, stem: str) -> None:
        """Claim a work unit among the processes on this disk, by a lock, and among others, by an object."""
        path = self.root / f"{stem}.lock"
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = UnitLock(path)
        try:
            self._claims.take(stem, self._disk())
        except BaseException:
            lock.release()
            raise
        self._locks[stem] = lock

    def _disk(self) -> str:
        """Name of this disk, which is drawn once."""
        path, drawn = self._spool / "disk", str(uuid.uuid4())
        with translate_os_errors(path):
            if not path.exists():
                beside = path.with_name(drawn)
                beside.write_text(drawn, encoding="utf-8")
                with suppress(FileExistsError):
                    os.link(beside, path)
                beside.unlink()
            return path.read_text(encoding="utf-8")

    def release(self, stem: str) -> None:
        """Release a claimed work unit."""
        self._claims.drop(stem)
        self._newest.pop(stem, None)
        self._locks.pop(stem).release()


def _shard_entry(number: int) -> str:
    """Name of an entry with shards that were added, or have moved."""
    return f"shards.{number:05d}.json"
