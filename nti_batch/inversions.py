"""The output of a run: the only file that writes there, and the one that reads it back.

    OUT/run.json                                    settings that change results
    OUT/inversions/<shard>.<k>of<n>.<part>.tar      members <key>.safetensors and <key>.json
    OUT/inversions/<shard>.<k>of<n>.<part>.jsonl    the manifest: a row for each image, done or failed
    OUT/inversions/<shard>.<k>of<n>.complete        the number of rows once no image of the work unit is missing

An image is committed when a manifest names it. A part grows as `.tar.tmp`; to commit it, it is synced and renamed,
and then its manifest is written beside it and renamed: so a manifest never names what is not on disk. What a dead
job left behind is salvaged image by image, since each member carries its checksum.
"""

import dataclasses
import io
import json
import logging
import os
import socket
import tarfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from nti_batch.manifest import Json, ManifestRow, read_manifest
from nti_batch.packing import StoredInversion, member_name, pack, read_members, unpack
from nti_batch.records import Failure, Inversion, WorkUnit


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_whole(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all, and survives a power cut once it has appeared."""
    beside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    _sync_folder(path.parent)


class PartWriter:
    """One output part of a work unit, from its first image to its commit."""

    def __init__(self, folder: Path, unit: WorkUnit, settings: dict[str, Json]) -> None:
        """Choose the next free part number; the file is made with the first inversion."""
        self.settings = settings
        numbers = [int(path.name.split(".")[-2]) for path in _files_of(folder, unit, ".jsonl")]
        self.part = folder / f"{unit.name}.{max(numbers, default=-1) + 1:05d}.tar"
        self.started = time.monotonic()
        self.rows: list[ManifestRow] = []
        self.num_bytes = 0
        self._file: io.BufferedWriter | None = None

    @property
    def _unfinished(self) -> Path:
        return self.part.with_name(self.part.name + ".tmp")

    def add_inversion(self, inversion: Inversion) -> None:
        """Append the two members and hand them to the operating system."""
        self.add_packed(*pack(inversion, self.settings))

    def add_packed(self, payload: bytes, metadata: dict[str, Json]) -> None:
        """Append an inversion in its stored form."""
        if self._file is None:
            self._file = open(self._unfinished, "wb")  # noqa: SIM115 (it lives until the commit)
        stem = member_name(str(metadata["key"]))
        for name, content in ((f"{stem}.safetensors", payload), (f"{stem}.json", json.dumps(metadata).encode())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            self._file.write(info.tobuf(tarfile.PAX_FORMAT))
            self._file.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
            self.num_bytes += len(content)
        self._file.flush()
        self.rows.append(ManifestRow.of_inversion(metadata))

    def add_failure(self, failure: Failure) -> None:
        """Note a failed image; it has a row and no members."""
        self.rows.append(ManifestRow.of_failure(failure))

    def commit(self) -> None:
        """Make the part whole and name its images in a manifest."""
        if not self.rows:
            return
        if self._file is not None:
            with self._file:
                self._file.write(bytes(2 * tarfile.BLOCKSIZE))
                self._file.flush()
                os.fsync(self._file.fileno())
            os.replace(self._unfinished, self.part)
            _sync_folder(self.part.parent)
        rows = [json.dumps(dataclasses.asdict(row)) for row in self.rows]
        _write_whole(self.part.with_suffix(".jsonl"), "\n".join(rows) + "\n")


class InversionRun:
    """An output folder."""

    def __init__(self, out: Path) -> None:
        """Look at the folder; nothing is read or written yet."""
        self.out = out
        self.folder = out / "inversions"
        self.run_file = out / "run.json"

    def create(self, settings: dict[str, Json], shards: list[str]) -> None:
        """Start the run, or continue it with the same settings; shards may be added.

        Raises:
            ValueError: If the folder cannot be written, or holds a run with other settings.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.run_file.exists():
                known = self.settings()
                _refuse_other_settings(self.out, known, settings)
                shards = list(dict.fromkeys([*self.shards(), *shards]))
            _write_whole(self.run_file, json.dumps({"settings": settings, "shards": shards}, indent=2) + "\n")
        except OSError as error:
            raise ValueError(
                f"output folder {str(self.out)!r} cannot be written: {error.strerror}; give another --output.dir"
            ) from error

    def _run(self) -> dict[str, Json]:
        if not self.run_file.is_file():
            raise ValueError(f"{str(self.out)!r} is no run: it has no run.json; give the --output.dir of an inversion")
        run: dict[str, Json] = json.loads(self.run_file.read_text())
        return run

    def settings(self) -> dict[str, Json]:
        """What the run was created with."""
        settings = self._run()["settings"]
        assert isinstance(settings, dict)
        return settings

    def shards(self) -> list[str]:
        """The input shards that the run has been given."""
        shards = self._run()["shards"]
        assert isinstance(shards, list)
        return [str(url) for url in shards]

    def rows(self, unit: WorkUnit) -> list[ManifestRow]:
        """What is committed of a work unit."""
        return [row for manifest in _files_of(self.folder, unit, ".jsonl") for row in read_manifest(manifest)]

    def new_part(self, unit: WorkUnit) -> PartWriter:
        """Start the unit's next part."""
        return PartWriter(self.folder, unit, self.settings())

    def salvage(self, unit: WorkUnit) -> int:
        """Commit what a dead job finished but did not commit; return the number of images."""
        saved = 0
        for ending in (".tar.salvage", ".tar.tmp", ".tar"):
            for left in _files_of(self.folder, unit, ending):
                whole = left.with_name(left.name.removesuffix(ending) + ".tar")
                if not whole.with_suffix(".jsonl").exists():
                    rescued = whole.with_suffix(".tar.salvage")
                    os.replace(left, rescued)
                    saved += self._commit_members(rescued, unit)
                    rescued.unlink()
        return saved

    def _commit_members(self, left: Path, unit: WorkUnit) -> int:
        committed = {row.key for row in self.rows(unit)}
        part = self.new_part(unit)
        try:
            for payload, metadata in read_members(left):
                if metadata["key"] not in committed:
                    part.add_packed(payload, metadata)
        except ValueError:
            # the cut is where the job died; what stands before it is whole
            logging.getLogger(__name__).info("%s ends where its job died; %d images saved", left, len(part.rows))
        part.commit()
        return len(part.rows)

    def mark_complete(self, unit: WorkUnit, images: int) -> None:
        """Note that no image of the unit is missing, so that it need not be read again."""
        _write_whole(self._complete(unit), json.dumps({"images": images}) + "\n")

    def is_complete(self, unit: WorkUnit) -> bool:
        """Whether every image of the unit is committed."""
        return self._complete(unit).exists()

    def _complete(self, unit: WorkUnit) -> Path:
        return self.folder / f"{unit.name}.complete"


def _files_of(folder: Path, unit: WorkUnit, ending: str) -> list[Path]:
    """A work unit's files in order of their parts; shard names may hold what `glob` takes for patterns."""
    head = f"{unit.name}."
    files = (p for p in folder.iterdir() if p.name.startswith(head) and p.name.endswith(ending))
    return sorted(p for p in files if p.name[len(head) : -len(ending)].isdigit())


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
        ValueError: If it is no run, or a part is damaged or does not hold what its manifest names; the text names it.
    """
    run = InversionRun(Path(out))
    run.settings()
    for manifest in sorted(run.folder.glob("*.jsonl")):
        rows = [row for row in read_manifest(manifest) if row.status == "done"]
        if not any(only is None or (row.shard, row.key) in only for row in rows):
            continue
        part, expected = manifest.with_suffix(".tar"), {row.key: row.sha256 for row in rows}
        for payload, metadata in read_members(part):
            if expected.pop(str(metadata["key"]), None) != metadata["sha256"]:
                raise ValueError(f"{part} is damaged: {metadata['key']!r} is not what {manifest.name} names")
            if only is None or (metadata["shard"], metadata["key"]) in only:
                yield unpack(payload, metadata)
        if expected:
            raise ValueError(f"{part} is damaged: it lacks {', '.join(map(repr, expected))}")
