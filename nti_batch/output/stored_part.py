"""The parts of a run as they are read: each with the rows that no later row replaces.

A record that is computed again has a row in a later part, with the next generation. Of the rows of a record, the one
of the highest generation counts; nothing is rewritten.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic

from nti_batch.output.manifest import Manifest, read_generation
from nti_batch.output.manifest_rows import AnyRow
from nti_batch.output.run_files import RunFiles, shown_errors


@dataclass(frozen=True, slots=True)
class StoredPart(Generic[AnyRow]):
    """A committed part."""

    path: Path
    """Path of its manifest."""

    row_type: type[AnyRow]
    newest: Mapping[str, int] = field(compare=False)
    """Generation of the row that counts, for each record of the work unit with several rows."""

    files: RunFiles = field(compare=False, repr=False)
    """Files of the run."""

    def read(self) -> Manifest[AnyRow]:
        """Read the manifest, with the rows that count.

        Raises:
            ValueError: If the manifest is damaged; the text names it.
        """
        with shown_errors(self.files.shown):
            manifest = Manifest.read(self.path, self.row_type)
        if not self.newest:
            return manifest
        counting = [row for row in manifest.rows if row.generation == self.newest.get(row.id, row.generation)]
        return replace(manifest, rows=counting)

    @contextmanager
    def tar(self, manifest: Manifest[AnyRow]) -> Iterator[Path]:
        """Have the tar on the local disk, with the checksum that its manifest names.

        Raises:
            ValueError: If it has another one; the text names the tar.
        """
        assert manifest.tar is not None
        with self.files.tar(manifest.tar) as tar:
            yield replace(manifest, tar=tar).check_tar()


def stored_parts(files: RunFiles, manifests: Iterable[Path], row_type: type[AnyRow]) -> list[StoredPart[AnyRow]]:
    """The parts of one work unit, in the order of their manifests.

    Raises:
        ValueError: If a manifest with rows of a later generation is damaged.
    """
    paths, newest = list(manifests), dict[str, int]()
    for path in paths:
        if read_generation(path) > 0:
            with shown_errors(files.shown):
                rows = Manifest.read(path, row_type).rows
            for row in rows:
                if row.generation > 0:
                    newest[row.id] = max(row.generation, newest.get(row.id, 0))
    return [StoredPart(path, row_type, newest, files) for path in paths]


Located = tuple[StoredPart[AnyRow], AnyRow]
"""A row, and the part in which it is."""
