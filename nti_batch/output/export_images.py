"""Exports edited images as plain files, with a table of their scores.

- FOLDER/<shard>/<key>+<name>.png: an edit; `file_names` makes the names;
- FOLDER/edits.csv: a line for each edit, with its file, or why there is none, and its scores.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from nti_batch.data.fit import is_cropped, put_back
from nti_batch.data.images import decode_image, to_image
from nti_batch.data.samples import RawSample, Reading, read_unit, samples_of
from nti_batch.data.shards import Shards
from nti_batch.data.tar import MemberPlace, locate_members
from nti_batch.files import atomic_open, atomic_write, translate_os_errors
from nti_batch.json_object import JsonObject
from nti_batch.lock import lock_folder
from nti_batch.output.edits import EDIT, EditRun, decode_png
from nti_batch.output.export import Exported
from nti_batch.output.file_names import distinct_names, readable_name
from nti_batch.output.manifest_rows import EditRow
from nti_batch.output.original import original_from_json
from nti_batch.output.stored_part import StoredPart
from nti_batch.records import Original, WorkUnit

TABLE = "edits.csv"
COLUMNS = (
    *("file", "shard", "key", "name", "edit_prompt", "psnr_unedited", "ssim_unedited", "mse_unedited", "seconds"),
    "error",
)


@dataclass(frozen=True, slots=True)
class Sources:
    """The input images, for edits that are put back into what was cropped away."""

    shards: Shards
    """Present addresses of the input shards by their names."""

    caption: str
    """Place of the prompts in the run of the inversions."""

    allow_pipe: bool

    def read(self, shard: str, keys: Collection[str]) -> Iterator[RawSample]:
        """Input images of a shard, as they come."""
        if keys and shard in self.shards:
            reading = Reading(default_caption="-", allow_pipe=self.allow_pipe)
            samples = read_unit(WorkUnit(shard, self.shards[shard], 0, 1), self.caption, reading)
            yield from (sample for sample in samples_of(keys, samples) if isinstance(sample, RawSample))


class ImageExport:
    """An export of one run to one folder."""

    def __init__(
        self,
        run: EditRun,
        folder: Path,
        only: Collection[tuple[str, str]] | None = None,
        sources: Sources | None = None,
    ) -> None:
        """Name the files.

        Args:
            run: The run.
            folder: Folder to write; it is created if it does not exist.
            only: Shard and key of the images whose edits are exported; None for all.
            sources: Input images, to give each edit the size of its original; None leaves edits as they are.
        """
        self.run, self.folder, self.only, self.sources = run, folder, only, sources
        self._damage: list[str] = []
        self._parts = {part: self._rows(part) for part in run.all_parts()}
        rows = [row for of_part in self._parts.values() for row in of_part]
        folders = distinct_names({row.shard: readable_name(row.shard) for row in rows})
        files = distinct_names(
            {
                (row.shard, row.id): f"{folders[row.shard]}/{readable_name(row.key)}+{readable_name(row.name)}"
                for row in rows
            }
        )
        self._files = {id: f"{name}.png" for id, name in files.items()}
        self._written: set[tuple[str, str]] = set()
        self._errors = {(row.shard, row.id): row.error for row in rows}
        """Why an edit has no file."""

    def _rows(self, part: StoredPart[EditRow]) -> list[EditRow]:
        try:
            return [row for row in part.read().rows if row.key]
        except ValueError as error:
            self._damage.append(str(error))
            return []

    def write(self) -> Exported:
        """Write the images and the table, over those of an earlier export.

        Raises:
            ValueError: If the folder cannot be written.
            OutputError: If a file cannot be written.
            UnitInUseError: If another export writes to it.
        """
        chosen = {
            part: [row for row in rows if self.only is None or (row.shard, row.key) in self.only]
            for part, rows in self._parts.items()
        }
        with lock_folder(self.folder, "export.lock", "--output"):
            for part, rows in chosen.items():
                self._write_part(part, [row for row in rows if row.status == "done"])
            every = [row for rows in chosen.values() for row in rows]
            with translate_os_errors(self.folder / TABLE):
                atomic_write(self.folder / TABLE, self._table(every).encode(errors="backslashreplace"))
        written = len(self._written)
        return Exported(written=written, failed=len(every) - written, damage=tuple(self._damage))

    def _write_part(self, part: StoredPart[EditRow], rows: Sequence[EditRow]) -> None:
        if not rows:
            return
        try:
            with part.tar(part.read()) as tar:
                self._write_images(tar, rows)
        except (ValueError, KeyError, RecursionError) as error:
            damage = (
                str(error) if isinstance(error, ValueError) else part.files.shown(f"{part.path} is damaged: {error!r}")
            )
            self._damage.append(damage)
            missing = ((row.shard, row.id) for row in rows)
            self._errors |= dict.fromkeys((id for id in missing if id not in self._written), damage)

    def _write_images(self, tar: Path, rows: Sequence[EditRow]) -> None:
        """Write the images of a part.

        Raises:
            ValueError: If the part is damaged.
            KeyError: If it lacks a member.
            RecursionError: If a member is nested too deeply.
        """
        places = locate_members(tar)
        cropped: defaultdict[str, list[tuple[EditRow, Original]]] = defaultdict(list)
        for row in rows:
            image = self._image(tar, places[f"{row.id}{EDIT.suffix}"], row)
            if self.sources is None:
                self._save(row, image)
                continue
            original = original_from_json(JsonObject(json.loads(places[f"{row.id}.json"].read(tar)), tar))
            if original is None:
                self._errors[row.shard, row.id] = "its inversion did not record the size of the original"
            elif is_cropped(original, image.size):
                self._errors[row.shard, row.id] = "its input image cannot be read"
                cropped[row.key].append((row, original))
            else:
                self._save(row, put_back(image, original, None))
        if self.sources and cropped:
            for sample in self.sources.read(rows[0].shard, cropped):
                for row, original in cropped[sample.key]:
                    image = self._image(tar, places[f"{row.id}{EDIT.suffix}"], row)
                    self._put_into(sample.image, row, image, original)

    def _image(self, tar: Path, place: MemberPlace, row: EditRow) -> Image.Image:
        try:
            return to_image(decode_png(place.read(tar)))
        except ValueError as error:
            raise ValueError(f"{tar} is damaged: {row.id!r} {error}") from error

    def _put_into(self, data: bytes, row: EditRow, image: Image.Image, original: Original) -> None:
        """Write an edit at its place in the input image, if that can be decoded."""
        try:
            source = decode_image(data, original.height, original.width, None, "stretch")
        except ValueError as error:
            self._errors[row.shard, row.id] = f"its input image cannot be read: {error}"
        else:
            self._save(row, put_back(image, original, to_image(source)))

    def _save(self, row: EditRow, image: Image.Image) -> None:
        path = self.folder / self._files[row.shard, row.id]
        with translate_os_errors(path):
            path.parent.mkdir(exist_ok=True)
            with atomic_open(path) as file:
                image.save(file, "PNG")
        self._written.add((row.shard, row.id))

    def _table(self, rows: Sequence[EditRow]) -> str:
        """A line for each edit."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            id = row.shard, row.id
            file, error = (self._files[id], "") if id in self._written else ("", self._errors[id])
            writer.writerow([file, *(getattr(row, name) for name in COLUMNS[1:-1]), error])
        return stream.getvalue()
