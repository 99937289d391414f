"""The local copy of a run in an object store.

No job changes a manifest, so each is copied once, and again only if somebody has removed or replaced it: a copy has the
time at which the store got its object.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self
from uuid import uuid4

from nti_batch.files import translate_os_errors
from nti_batch.output.bucket import Bucket, Version
from nti_batch.output.run_files import RUN_FILE, AnyManifest, shown_errors

MAX_ENTRIES = 1 << 17
"""Most entries of a log, against a number that never ends."""

DOWNLOADS = 16
"""Manifests that are copied at the same time."""


def default_spool() -> Path:
    """Folder of the copies of all runs."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "nti_batch" / "runs"


class BucketCopy:
    """What has been read of a run in an object store. It is brought up to date when it is asked."""

    def __init__(self, address: str, spool: str | None = None) -> None:
        """Look for the run.

        Args:
            address: Address of the run.
            spool: Local folder for copies of runs, and for what is finished and not committed.

        Raises:
            ValueError: If the store or the local folder cannot be used.
            OutputError: If the store does not answer.
        """
        self.address, self.bucket = address, Bucket(address)
        try:
            self.spool = Path(spool) if spool else default_spool()
            self.spool.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"the local folder for copies of {address} cannot be made: {error}; give a job another --output.spool, "
                "or set XDG_CACHE_HOME"
            ) from error
        self._listed: dict[str, dict[str, Version]] | None = None
        """Names and versions by folder, once there is a snapshot."""

        self._compared: set[str] = set()
        """Stems of the work units whose copies have been compared with the store."""

        self.root = self.place()

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Look for the run again in another process."""
        return type(self), (self.address, str(self.spool))

    def place(self) -> Path:
        """The folder of the copy: another run that has been created at this address has another one."""
        checksum = hashlib.sha256(f"{self.address} {self.bucket.version(RUN_FILE)}".encode()).hexdigest()
        return self.spool / f"{re.sub('[^A-Za-z0-9]+', '-', self.address)[-60:]}-{checksum[:16]}"

    def shown(self, text: str) -> str:
        """The text with addresses in place of the paths of copies."""
        return re.sub(r"\.[0-9a-f]{32}\.tmp", "", text).replace(str(self.root), self.address)

    def snapshot(self) -> None:
        """From now on, list each folder once, and know its files from that."""
        self._listed = {}

    def path(self, name: str) -> Path:
        """Copy a small file."""
        if name == RUN_FILE:
            self.root = self.place()
        path = self.root / name
        self.copy(path)
        return path

    def copy(self, path: Path) -> bool:
        """Copy a small file, which other processes may copy at the same time; return whether there is one."""
        found = self.bucket.read_version(self.name(path))
        with translate_os_errors(path):
            if found is None:
                path.unlink(missing_ok=True)
                return False
            content, version = found
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = _beside(path)
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.utime(beside, (version.second, version.second))
            os.replace(beside, path)
        return True

    def name(self, path: Path) -> str:
        """Name of the object of a copy."""
        return path.relative_to(self.root).as_posix()

    def added_shards(self) -> list[Path]:
        """Entries with the shards that were added."""
        paths = (self.root / shard_entry(number) for number in range(MAX_ENTRIES))
        return list(itertools.takewhile(self.copy, paths))

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder of the run."""
        return set(self._list(folder))

    def _list(self, folder: str) -> dict[str, Version]:
        if self._listed is None:
            return self.bucket.list(folder)
        if folder not in self._listed:
            self._listed[folder] = self.bucket.list(folder)
        return self._listed[folder]

    def manifests(self, stem: str) -> list[Path]:
        """Manifests of a work unit; those that are new are copied."""
        if self._listed is None:
            self._remove_old_copies(stem)
        paths = (self.manifest(stem, number) for number in range(MAX_ENTRIES))
        return list(itertools.takewhile(self._has_copy, paths))

    def _has_copy(self, path: Path) -> bool:
        """Copy a manifest that was not copied before; return whether there is one."""
        if self._listed is None:
            return path.exists() or self.copy(path)
        version = self._list(path.parent.name).get(path.name)
        return version is not None and (_is_copied(path, version) or self.copy(path))

    def manifest(self, stem: str, number: int) -> Path:
        """Path of the copy of a manifest."""
        return self.root / f"{stem}.{number:05d}.jsonl"

    def _remove_old_copies(self, stem: str) -> None:
        """Remove the copies of a work unit's manifests if its last one was removed from the store, or replaced."""
        if stem in self._compared:
            return
        numbers = itertools.takewhile(lambda n: self.manifest(stem, n).exists(), itertools.count())
        copies = [self.manifest(stem, number) for number in numbers]
        if copies and not _is_copied(copies[-1], self.bucket.version(self.name(copies[-1]))):
            for copy in copies:
                copy.unlink(missing_ok=True)
        self._compared.add(stem)

    def all_manifests(self, folder: str) -> list[Path]:
        """Manifests of all work units: one request lists a thousand, and those that are new are copied."""
        listed = {self.root / folder / name: version for name, version in self._list(folder).items()}
        manifests = [path for path in listed if path.suffix == ".jsonl"]
        with ThreadPoolExecutor(DOWNLOADS) as threads:
            list(threads.map(self.copy, (path for path in manifests if not _is_copied(path, listed[path]))))
        return manifests

    @contextmanager
    def tar(self, path: Path) -> Iterator[Path]:
        """Copy a tar for a while."""
        beside = _beside(path)
        try:
            with shown_errors(self.shown):
                self.bucket.download(self.name(path), beside)
                yield beside
        finally:
            beside.unlink(missing_ok=True)

    def keep_tar(self, manifest: AnyManifest) -> None:
        """Copy a tar that was not copied before, and check it."""
        assert manifest.tar is not None
        if not manifest.tar.exists():
            with self.tar(manifest.tar) as tar, translate_os_errors(tar):
                os.replace(replace(manifest, tar=tar).check_tar(), manifest.tar)


def shard_entry(number: int) -> str:
    """Name of an entry with shards that were added, or have moved."""
    return f"shards.{number:05d}.json"


def _beside(path: Path) -> Path:
    """A file of its own for a copy that is being made."""
    return path.with_name(f"{path.name}.{uuid4().hex}.tmp")


def _is_copied(path: Path, version: Version | None) -> bool:
    """Whether there is a copy of an object in this version; None stands for no object."""
    if version is None or not path.exists():
        return False
    status = path.stat()
    return (status.st_mtime, status.st_size) == version
