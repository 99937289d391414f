"""The output of an inversion job, and reading it back. `parts` has what is common to all jobs.

OUT/inversions/<shard>.<k>of<n>.<part>.tar      members <key>.safetensors and <key>.json
OUT/inversions/<shard>.<k>of<n>.complete        the number of rows once no image of the work unit is missing
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path

from nti_batch.files import atomic_write, translate_os_errors
from nti_batch.output.manifest import Json, Manifest, ManifestRow
from nti_batch.output.part import read_members
from nti_batch.output.run import OutputRun
from nti_batch.output.serialization import StoredInversion, pack, unpack
from nti_batch.records import Inversion, WorkUnit


class InversionRun(OutputRun[Inversion, ManifestRow]):
    """An output folder of `nti-batch invert`."""

    command, folder_name, ending, row_type = "invert", "inversions", ".safetensors", ManifestRow

    def pack(self, record: Inversion) -> tuple[bytes, dict[str, Json]]:
        """Tensors and metadata."""
        return pack(record, self.settings())

    def forget_failures(self, unit: WorkUnit) -> None:
        """Take the rows of failed images out, too, from what is complete."""
        with translate_os_errors(self.folder):
            self._complete(unit).unlink(missing_ok=True)
        super().forget_failures(unit)

    def finish(self, unit: WorkUnit, records: int) -> None:
        """Note that no image of the unit is missing, so that it need not be read again."""
        path = self._complete(unit)
        with translate_os_errors(path):
            atomic_write(path, json.dumps({"images": records}) + "\n")

    def is_complete(self, unit: WorkUnit) -> bool:
        """Whether every image of the unit is committed."""
        return self._complete(unit).exists()

    def images_when_complete(self, unit: WorkUnit) -> int:
        """What `finish` noted.

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
        yield from read_part(path, only)


def read_part(manifest_path: Path, only: Collection[tuple[str, str]] | None = None) -> Iterator[StoredInversion]:
    """The inversions of one part, as `read_inversions` gives them."""
    manifest, part = Manifest.read(manifest_path, ManifestRow), manifest_path.with_suffix(".tar")
    done = (row for row in manifest.rows if row.status == "done")
    if not any(only is None or (row.shard, row.key) in only for row in done):
        return
    # all of it, before anything is handed on: a caption has no checksum of its own
    manifest.check_part(part)
    for payload, metadata in read_members(part):
        if only is None or (metadata["shard"], metadata["key"]) in only:
            yield unpack(payload, metadata)
