"""A run in an object store: what a job writes there (docs/protocol.md).

A part grows on the local disk as in a folder, and is put when it is committed: what a killed job left on this disk is
salvaged by the next job.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from nti_batch.files import OutputError, check_writable, translate_os_errors
from nti_batch.lock import UnitLock
from nti_batch.output.bucket_copy import BucketCopy, shard_entry
from nti_batch.output.claims import Claims
from nti_batch.output.manifest import Manifest
from nti_batch.output.run_files import RUN_FILE, AnyManifest, shown_errors


class BucketFiles(BucketCopy):
    """A run in an object store. Jobs share its work units; a put if absent commits a part."""

    is_shared = True

    def __init__(self, address: str, spool: str | None = None) -> None:
        """Look for the run; arguments and errors as for its copy."""
        super().__init__(address, spool)
        self._locks: dict[str, UnitLock] = {}
        self._claims = Claims(self.bucket)
        self._newest: dict[str, tuple[int, dict[str, int]]] = {}
        """Number of manifests that were read of a work unit, and the last generation of each of its records."""

    def publish(self, path: Path) -> None:
        """Put a file under its name in the copy."""
        with translate_os_errors(path):
            self.bucket.put_file(self.name(path), path)

    def put(self, name: str, text: str) -> None:
        """Write a small file, over another one."""
        self.bucket.put(name, text.encode())

    def remove_older(self, address: str, hours: float) -> bool:
        """Remove an object if it is older than this, by the clock of the store."""
        name, now = address.removeprefix(f"{self.address}/"), self._claims.now()
        version = self.bucket.version(name)
        is_old = version is not None and now - version.second > 3600 * hours
        if is_old:
            self.bucket.remove(name)
        return is_old

    @contextmanager
    def creating(self, folder: str) -> Iterator[None]:
        """Check that the store can hold a run, and make the folders of the copy."""
        self.bucket.check_condition()
        yield
        with translate_os_errors(self.root):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def check_writable(self, folder: str) -> None:
        """Check that the copy can be written."""
        check_writable(self.spool)

    def put_run(self, text: str, shards: Mapping[str, str], is_new: bool) -> bool:
        """Put `run.json`, or an entry with the shards that are new to it."""
        if is_new:
            is_first = self.bucket.put_if_absent(RUN_FILE, text.encode())
            self.root = self.place()
            return is_first
        entry = shard_entry(len(self.added_shards()))
        return self.bucket.put_if_absent(entry, json.dumps({"shards": dict(shards)}).encode())

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
                self.bucket.put_file(name, manifest.check_tar())
                manifest, is_put = replace(manifest, tar=self.root / name), True
            path = self.manifest(stem, number)
            if self.bucket.put_if_absent(self.name(path), manifest.text().encode()):
                break
        with suppress(OutputError):  # it is committed, and copied when it is needed
            self.copy(path)
        with translate_os_errors(part):
            part.unlink(missing_ok=True)
        return True

    def _read_new(self, stem: str, manifest: AnyManifest) -> tuple[int, dict[str, int]]:
        """Read the manifests of a work unit that are new: their number, and the last generation of each record."""
        number, newest = self._newest.get(stem, (0, {}))
        paths, row_type = self.manifests(stem), type(manifest.rows[0])
        if paths and self.bucket.version(self.name(paths[-1])) is None:
            raise OutputError(
                f"{self.shown(str(paths[-1]))} was removed while a job works on it: run the same command again"
            )
        for path in paths[number:]:
            with shown_errors(self.shown):
                rows = Manifest.read(path, row_type).rows
            for row in rows:
                newest[row.id] = max(row.generation, newest.get(row.id, 0))
        self._newest[stem] = len(paths), newest
        return len(paths), newest

    def claim(self, stem: str) -> None:
        """Claim a work unit among the processes on this disk, by a lock, and among others, by an object."""
        path = self.root / f"{stem}.lock"
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = UnitLock(path)
        self._compared.discard(stem)
        try:
            self._claims.take(stem, self._disk())
        except BaseException:
            lock.release()
            raise
        self._locks[stem] = lock

    def _disk(self) -> str:
        """Name of this disk, which is drawn once."""
        path, drawn = self.spool / "disk", str(uuid.uuid4())
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
