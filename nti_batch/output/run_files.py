"""The files of a run, wherever they are: what `OutputRun` needs of a folder or of an object store."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from nti_batch.files import atomic_write, check_writable, translate_os_errors
from nti_batch.lock import UnitLock, exclusive
from nti_batch.output.manifest import Manifest

AnyManifest = Manifest[Any]
RUN_FILE = "run.json"


class RunFiles(Protocol):
    """The files of a run. Names are relative to the run, as 'inversions/00000.0of1.complete'.

    The parts of a work unit have its stem, as 'inversions/00000.0of1', and then their number.
    """

    address: str
    """Address of the run, as messages show it."""

    root: Path
    """Local folder: the run itself, or a copy of what was read of it."""

    is_shared: bool
    """Whether a job passes over the work units of other jobs; otherwise they end it."""

    def shown(self, text: str) -> str:
        """A text with the addresses of files in place of their local paths."""

    def publish(self, path: Path) -> None:
        """Copy a local file, such as a preview, to its place in the run, over another one."""

    def remove_older(self, address: str, hours: float) -> bool:
        """Remove a file if it is older than this; return whether it was."""

    def snapshot(self) -> None:
        """From now on, know the files from one listing. Without it, each is looked for when it is needed."""

    def path(self, name: str) -> Path:
        """Local path of a small file as it is now, which need not exist."""

    def put(self, name: str, text: str) -> None:
        """Write a small file, over another one."""

    def creating(self, folder: str) -> AbstractContextManager[None]:
        """Hold what keeps two starts of a job apart, and make the local folders.

        Args:
            folder: Folder of the parts.

        Raises:
            ValueError: If the store cannot hold a run.
            OSError: If a folder cannot be made.
        """

    def check_writable(self, folder: str) -> None:
        """Check, without writing, that a run can be created.

        Raises:
            OSError: If it cannot.
        """

    def put_run(self, text: str, shards: Mapping[str, str], is_new: bool) -> bool:
        """Write `run.json`, or the shards that are new to it; return False if another start was first.

        Args:
            text: Content of `run.json`.
            shards: Addresses of the shards that are new, or have moved.
            is_new: Whether there was no `run.json`.
        """

    def added_shards(self) -> list[Path]:
        """Entries with the shards that were added in an object store, as local files."""

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder of the run."""

    def manifests(self, stem: str) -> list[Path]:
        """Manifests of a work unit by number, which have no gap."""

    def all_manifests(self, folder: str) -> list[Path]:
        """Manifests of all work units."""

    def next_part(self, stem: str) -> Path:
        """Local path at which the tar of the next part is finished."""

    def commit(self, stem: str, part: Path, manifest: AnyManifest) -> bool:
        """Commit a part.

        Args:
            stem: Stem of the work unit.
            part: What `next_part` gave.
            manifest: Its rows.

        Returns:
            False if the unit has got rows of the same records meanwhile; nothing is then committed.
        """

    def tar(self, path: Path) -> AbstractContextManager[Path]:
        """Have a tar on the local disk for a while.

        Args:
            path: Path beside its manifest.
        """

    def keep_tar(self, manifest: AnyManifest) -> None:
        """Have the tar of a manifest on the local disk from now on.

        Raises:
            ValueError: If it is missing in an object store, or damaged there.
        """

    def claim(self, stem: str) -> None:
        """Claim a work unit.

        Raises:
            UnitInUseError: If another process works on it.
        """

    def release(self, stem: str) -> None:
        """Release a claimed work unit."""


class FolderFiles:
    """A run in a local folder. Its locks give a work unit to one process at a time."""

    is_shared = False

    def __init__(self, root: Path) -> None:
        """Write nothing.

        Args:
            root: The output folder.
        """
        self.root, self.address = root, str(root)
        self._locks: dict[str, UnitLock] = {}

    def shown(self, text: str) -> str:
        """The text itself."""
        return text

    def publish(self, path: Path) -> None:
        """Do nothing: the file is in its place."""

    def remove_older(self, address: str, hours: float) -> bool:
        """Remove nothing: a job salvages what is not committed."""
        return False

    def snapshot(self) -> None:
        """Do nothing: looking for a file is quick."""

    def path(self, name: str) -> Path:
        """Path of a file."""
        return self.root / name

    def put(self, name: str, text: str) -> None:
        """Write a file whole, over another one."""
        path = self.root / name
        with translate_os_errors(path):
            atomic_write(path, text)

    @contextmanager
    def creating(self, folder: str) -> Iterator[None]:
        """Hold the lock of `run.json`."""
        self.root.mkdir(parents=True, exist_ok=True)
        with exclusive(self.root / f"{RUN_FILE}.lock"):
            if not (self.root / RUN_FILE).exists():
                (self.root / folder).mkdir(exist_ok=True)
            yield

    def check_writable(self, folder: str) -> None:
        """Check that the folder can be written."""
        check_writable(self.root / folder)

    def put_run(self, text: str, shards: Mapping[str, str], is_new: bool) -> bool:
        """Write `run.json`, which then has all shards."""
        atomic_write(self.root / RUN_FILE, text)
        for entry in self.added_shards():
            entry.unlink()
        return True

    def added_shards(self) -> list[Path]:
        """Entries with the shards that were added while the run was in an object store."""
        return sorted(self.root.glob("shards.*.json"))

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder of the run."""
        return set(os.listdir(self.root / folder))

    def manifests(self, stem: str) -> list[Path]:
        """Manifests of a work unit: listing a folder of millions of files takes long."""
        found: list[Path] = []
        while (path := self._part(stem, len(found)).with_suffix(".jsonl")).exists():
            found.append(path)
        return found

    def all_manifests(self, folder: str) -> list[Path]:
        """Manifests of all work units."""
        return list((self.root / folder).glob("*.jsonl"))

    def next_part(self, stem: str) -> Path:
        """Path of the next part's tar."""
        return self._part(stem, len(self.manifests(stem)))

    def commit(self, stem: str, part: Path, manifest: AnyManifest) -> bool:
        """Write the manifest beside the tar; the lock of the work unit keeps others from it."""
        atomic_write(part.with_suffix(".jsonl"), manifest.text())
        return True

    @contextmanager
    def tar(self, path: Path) -> Iterator[Path]:
        """The path itself."""
        yield path

    def keep_tar(self, manifest: AnyManifest) -> None:
        """Do nothing: it is there."""

    def claim(self, stem: str) -> None:
        """Take the lock of a work unit."""
        path = self.root / f"{stem}.lock"
        with translate_os_errors(path):
            self._locks[stem] = UnitLock(path)

    def release(self, stem: str) -> None:
        """Release the lock of a work unit."""
        self._locks.pop(stem).release()

    def _part(self, stem: str, number: int) -> Path:
        return self.root / f"{stem}.{number:05d}.tar"


@contextmanager
def shown_errors(shown: Callable[[str], str]) -> Iterator[None]:
    """Let the errors about the files of a run name them as messages do.

    Args:
        shown: `RunFiles.shown`.

    Raises:
        ValueError: In place of one that names a local copy.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(shown(str(error))) from error
