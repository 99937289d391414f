"""The output of a run: the only file that writes there, and the one that reads it back.

    OUT/run.json                                    settings that change results
    OUT/inversions/<shard>.<k>of<n>.<part>.tar      members <key>.safetensors and <key>.json
    OUT/inversions/<shard>.<k>of<n>.<part>.jsonl    the manifest: a row for each image, done or failed
    OUT/inversions/<shard>.<k>of<n>.complete        the number of rows once no image of the work unit is missing
    OUT/inversions/<shard>.<k>of<n>.lock            who is at it

An image is committed when a manifest names it. A part grows as `.tar.tmp`; to commit it, it is synced and renamed,
and then its manifest is written beside it and renamed: so a manifest never names what is not on disk. What a dead
job left behind is salvaged image by image, since each member carries its checksum.
"""

import hashlib
import io
import itertools
import json
import logging
import os
import socket
import tarfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from nti_batch.lock import UnitLock
from nti_batch.manifest import Json, Manifest, ManifestRow
from nti_batch.packing import StoredInversion, member_name, pack, read_members, unpack
from nti_batch.records import Failure, Inversion, WorkUnit


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_whole(path: Path, text: str, ending: str = ".tmp") -> None:
    """Write a file that appears whole or not at all, and survives a power cut once it has appeared."""
    beside = path.with_name(path.name + ending)
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    _sync_folder(path.parent)


class OutputError(Exception):
    """The output folder cannot be written."""


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file an error of the operating system is about, and what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; what is committed stays readable: "
            "make room or mend the folder, and run the same command again"
        ) from error


class PartWriter:
    """One output part of a work unit, from its first image to its commit."""

    def __init__(self, part: Path, settings: dict[str, Json]) -> None:
        """Write nothing yet; the file is made with the first inversion.

        Args:
            part: The tar to be.
            settings: The run's, which go with each image.
        """
        self.part = part
        self.settings = settings
        self.started = time.monotonic()
        self.rows: list[ManifestRow] = []
        self._checksum = hashlib.sha256()
        self._unfinished = part.with_name(part.name + ".tmp")
        self._file: io.FileIO | None = None

    def add_inversion(self, inversion: Inversion) -> None:
        """Append the two members and hand them to the operating system.

        Raises:
            OutputError: If they cannot be written; the part holds what it held before.
        """
        self.add_packed(*pack(inversion, self.settings))

    def add_packed(self, payload: bytes, metadata: dict[str, Json]) -> None:
        """Append an inversion in its stored form, as `add_inversion` does."""
        stem, row = member_name(str(metadata["key"])), ManifestRow.of_inversion(metadata)
        members = (f"{stem}.safetensors", payload), (f"{stem}.json", json.dumps(metadata).encode())
        with _named(self.part):
            if self._file is None:
                self._file = open(self._unfinished, "wb", buffering=0)  # noqa: SIM115 (it lives until the commit)
            self._write(b"".join(_tar_member(name, content) for name, content in members))
        self.rows.append(row)

    def add_failure(self, failure: Failure) -> None:
        """Note a failed image; it has a row and no members."""
        self.rows.append(ManifestRow.of_failure(failure))

    def commit(self) -> None:
        """Make the part whole and name its images in a manifest.

        Raises:
            OutputError: If it cannot be written; the part is not committed, and a later job salvages it.
        """
        if not self.rows:
            return
        with _named(self.part):
            if self._file is not None:
                with self._file:
                    self._write(bytes(2 * tarfile.BLOCKSIZE))
                    os.fsync(self._file.fileno())
                os.replace(self._unfinished, self.part)
                _sync_folder(self.part.parent)
            part_sha256 = self._checksum.hexdigest() if self._file else ""
            _write_whole(self.part.with_suffix(".jsonl"), Manifest(self.rows, part_sha256).text())

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


class InversionRun:
    """An output folder."""

    def __init__(self, out: Path) -> None:
        """Look at the folder; nothing is read or written yet."""
        self.out = out
        self.folder = out / "inversions"
        self.run_file = out / "run.json"
        self._settings: dict[str, Json] | None = None
        self._locks: dict[WorkUnit, UnitLock] = {}

    def create(self, settings: dict[str, Json], shards: list[str]) -> None:
        """Start the run, or continue it with the same settings; shards may be added.

        Raises:
            ValueError: If the folder cannot be written, or holds a run with other settings.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.run_file.exists():
                known_settings, known = self._run()
                _refuse_other_settings(self.out, known_settings, settings)
                shards = list(dict.fromkeys([*known, *shards]))
                if shards == known:
                    return
            text = json.dumps({"settings": settings, "shards": shards}, indent=2) + "\n"
            # every rank writes it; all else belongs to one process
            _write_whole(self.run_file, text, f".{socket.gethostname()}.{os.getpid()}.tmp")
        except OSError as error:
            raise ValueError(
                f"output folder {str(self.out)!r} cannot be written: {error.strerror}; give another --output.dir"
            ) from error

    def _run(self) -> tuple[dict[str, Json], list[str]]:
        if not self.run_file.is_file():
            raise ValueError(f"{str(self.out)!r} is no run: it has no run.json; give the --output.dir of an inversion")
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

    def rows(self, unit: WorkUnit) -> list[ManifestRow]:
        """What is committed of a work unit."""
        return [row for manifest in self.manifests(unit) for row in Manifest.read(manifest).rows]

    def new_part(self, unit: WorkUnit) -> PartWriter:
        """Start the unit's next part."""
        return PartWriter(self._part(unit, len(self.manifests(unit))), self.settings())

    def lock(self, unit: WorkUnit) -> None:
        """Claim a work unit until `release` or the end of this process.

        Raises:
            UnitInUseError: If another process is at it.
        """
        path = self.folder / f"{unit.name}.lock"
        with _named(path):
            self._locks[unit] = UnitLock(path)

    def release(self, unit: WorkUnit) -> None:
        """Give a claimed work unit back; its open part must be committed."""
        self._locks.pop(unit).release()

    def release_all(self) -> None:
        """Give back what is still claimed."""
        for unit in list(self._locks):
            self.release(unit)

    def salvage(self, unit: WorkUnit) -> int:
        """Commit what a dead job finished but did not commit; return the number of images."""
        number = len(self.manifests(unit))
        part = self._part(unit, number)
        unfinished, rescued = part.with_suffix(".tar.tmp"), part.with_suffix(".tar.salvage")
        saved = 0
        with _named(part):
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
        committed = {row.key for row in self.rows(unit)}
        part = self.new_part(unit)
        try:
            for payload, metadata in read_members(left):
                if metadata["key"] not in committed:
                    part.add_packed(payload, metadata)
                    committed.add(str(metadata["key"]))
        except ValueError:
            # the cut is where the job died; what stands before it is whole
            logging.getLogger(__name__).info("%s ends where its job died; %d images saved", left, len(part.rows))
        part.commit()
        return len(part.rows)

    def mark_complete(self, unit: WorkUnit, images: int) -> None:
        """Note that no image of the unit is missing, so that it need not be read again."""
        path = self._complete(unit)
        with _named(path):
            _write_whole(path, json.dumps({"images": images}) + "\n")

    def has_failures(self, unit: WorkUnit) -> bool:
        """Whether an image of the unit, or its shard, is committed as failed."""
        return any(row.status == "failed" for row in self.rows(unit))

    def forget_failures(self, unit: WorkUnit) -> None:
        """Take the rows of failed images out of the manifests, so that these images are missing again."""
        with _named(self.folder):
            self._complete(unit).unlink(missing_ok=True)
            for path in self.manifests(unit):
                manifest = Manifest.read(path)
                done = [row for row in manifest.rows if row.status == "done"]
                if len(done) < len(manifest.rows):
                    _write_whole(path, Manifest(done, manifest.part_sha256).text())

    def is_complete(self, unit: WorkUnit) -> bool:
        """Whether every image of the unit is committed."""
        return self._complete(unit).exists()

    def images_when_complete(self, unit: WorkUnit) -> int:
        """What `mark_complete` noted.

        Raises:
            ValueError: If the note is damaged.
        """
        path = self._complete(unit)
        try:
            images: int = json.loads(path.read_text())["images"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return images

    def _complete(self, unit: WorkUnit) -> Path:
        return self.folder / f"{unit.name}.complete"


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


def read_inversions(out: str | Path, only: Collection[tuple[str, str]] | None = None) -> Iterator[StoredInversion]:
    """The committed inversions of a run, in any order.

    Args:
        out: The run's output folder.
        only: Image ids (shard, key) to read; all if None. Parts that hold none of them are not opened.

    Raises:
        ValueError: If it is no run, or a part is not the one that its manifest names; the text names the file.
    """
    run = InversionRun(Path(out))
    run.settings()
    for path in sorted(run.folder.glob("*.jsonl")):
        manifest, part = Manifest.read(path), path.with_suffix(".tar")
        done = (row for row in manifest.rows if row.status == "done")
        if not any(only is None or (row.shard, row.key) in only for row in done):
            continue
        # all of it, before anything is handed on: a caption has no checksum of its own
        manifest.check_part(part)
        for payload, metadata in read_members(part):
            if only is None or (metadata["shard"], metadata["key"]) in only:
                yield unpack(payload, metadata)
