"""The rows of a run as a parquet table: a line for each image or edit.

Its columns are those of the manifest, and besides

- `id`: SHARD/KEY or SHARD/KEY+NAME, with special characters as %XX, as in the log;
- `caption`: the prompt of an inversion, from its `.json`;
- `part`, `member`, `offset`, `bytes`: the tar that holds the tensors or the image, and the place in it;
- `model.num_steps` and so on: the settings of the run, by the names of their flags;
- `origin.torch` and so on: what made the record.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nti_batch.data.tar import MemberPlace, locate_members
from nti_batch.files import atomic_open, open_regular, translate_os_errors
from nti_batch.json_object import Json
from nti_batch.output.export import Exported
from nti_batch.output.inversions import INVERT
from nti_batch.output.manifest import Manifest
from nti_batch.output.manifest_rows import Row
from nti_batch.output.origin import Origin
from nti_batch.output.part import DAMAGE, MAX_MEMBER_BYTES
from nti_batch.output.run_folder import AnyRun
from nti_batch.output.status import RowCounts
from nti_batch.output.stored_part import StoredPart
from nti_batch.settings import flatten

ROW_GROUP = 8192
"""Rows of a row group: so many are in memory."""

SUFFIX = ".parquet"
_PLACE: dict[str, str] = {"part": "string", "member": "string", "offset": "int64", "bytes": "int64"}
_TYPES: Mapping[type, str] = {str: "string", bool: "bool", int: "int64", float: "double"}

Cells = dict[str, Any]


def table_file(run: AnyRun, output: Path) -> Path:
    """The file of a table: `output` if it ends in '.parquet', otherwise a file in that folder."""
    return output if output.suffix == SUFFIX else output / f"{run.kind.folder}{SUFFIX}"


class RunTable:
    """The table of a run, and what its rows add up to."""

    def __init__(self, run: AnyRun, only: Collection[tuple[str, str]] | None = None) -> None:
        """Read nothing yet.

        Args:
            run: The run.
            only: Shard and key of the images that get lines; None for all.

        Raises:
            ValueError: If pyarrow is not installed.
        """
        try:
            import pyarrow
        except ImportError as error:
            raise ValueError(
                "parquet needs pyarrow, which is not installed: pip install 'nti-batch[parquet]'"
            ) from error
        self.run, self.only = run, only
        self.counts = RowCounts()
        self.origins: Counter[Origin] = Counter()
        """Finished records by what made them."""

        self._has_captions = run.kind.command == INVERT.command
        self._settings = {name: _scalar(value) for name, value in flatten(run.settings.to_json()).items()}
        self._damage: list[str] = []
        self._arrow = pyarrow

    def write(self, path: Path) -> Exported:
        """Write the table, which appears whole or not at all.

        Raises:
            ValueError: If a manifest with rows of a later generation is damaged.
            OutputError: If the file cannot be written.
        """
        from pyarrow.parquet import ParquetWriter

        schema, lines, written = self._schema(), self._lines(), 0
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_open(path) as file, ParquetWriter(file, schema, compression="zstd") as writer:
                while group := list(islice(lines, ROW_GROUP)):
                    writer.write_batch(self._arrow.RecordBatch.from_pylist(group, schema))
                    written += len(group)
        return Exported(written=written, damage=tuple(self._damage))

    def _schema(self) -> Any:
        columns = self.run.kind.row_type.columns
        types = {"id": "string", **{name: _TYPES[_type(column.types)] for name, column in columns.items()}}
        types |= {"caption": "string"} if self._has_captions else {}
        types |= _PLACE | {name: _TYPES[type("" if value is None else value)] for name, value in self._settings.items()}
        types |= {f"origin.{name}": "string" for name in Origin.__dataclass_fields__}
        arrow = {name: self._arrow.type_for_alias(kind) for name, kind in types.items()}
        return self._arrow.schema({**arrow, "finished": self._arrow.timestamp("us", "UTC")})

    def _lines(self) -> Iterator[Cells]:
        for part in self.run.all_parts():
            try:
                manifest = part.read()
            except ValueError as error:
                self._damage.append(str(error))
            else:
                yield from self._lines_of(part, manifest)

    def _lines_of(self, part: StoredPart[Any], manifest: Manifest[Any]) -> Iterator[Cells]:
        shared = self._settings | {f"origin.{name}": value for name, value in manifest.origin.to_json().items()}
        with ExitStack() as held:
            tar, places = self._open(manifest.tar, held)
            for row in manifest.rows:
                self.counts.add(row)
                self.origins[manifest.origin] += row.status == "done" and row.key != ""
                if row.key and (self.only is None or (row.shard, row.key) in self.only):
                    found = self._stored(tar, places, row) if tar and row.status == "done" else {}
                    place = {"part": f"{self.run.kind.folder}/{manifest.tar.name}"} if manifest.tar and found else {}
                    cells = {**_cells(row), **found, **place, **shared}
                    yield {name: _text(value) for name, value in cells.items()}

    def _open(self, tar: Path | None, held: ExitStack) -> tuple[Path | None, Mapping[str, MemberPlace]]:
        """A tar on the local disk and the places of its members; None if it is damaged."""
        if tar is None:
            return None, {}
        shown = self.run.files.shown(str(tar))
        try:
            local = held.enter_context(self.run.files.tar(tar))
            # a named pipe would wait for a writer
            open_regular(local).close()
            return local, locate_members(local)
        except OSError as error:
            self._damage.append(f"{shown} is damaged: {error.strerror}")
        except ValueError as error:
            text = self.run.files.shown(str(error))
            self._damage.append(text if shown in text else f"{shown} is damaged: {text}")
        return None, {}

    def _stored(self, tar: Path, places: Mapping[str, MemberPlace], row: Row) -> Cells:
        """Cells about what the tar holds of a record; none if that is damaged."""
        name = f"{row.id}{self.run.kind.suffix}"
        try:
            caption = {"caption": _caption(tar, places[f"{row.id}.json"], row)} if self._has_captions else {}
            place = places[name]
        except DAMAGE as error:
            damage = str(error) if isinstance(error, ValueError) else f"{tar} is damaged: {error!r}"
            self._damage.append(self.run.files.shown(damage))
            return {}
        return {**caption, "member": name, "offset": place.offset, "bytes": place.size}


def _type(types: tuple[type, ...]) -> type:
    """The type of a column: a number that may have a fraction is a float."""
    return float if float in types else types[0]


def _scalar(value: Json) -> Json:
    """A value of a setting, a list or an object as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _cells(row: Row) -> Cells:
    finished = datetime.fromtimestamp(row.finished, UTC)
    return {"id": f"{quote(row.shard, safe='')}/{row.id}", **row.values(), "finished": finished}


def _caption(tar: Path, place: MemberPlace, row: Row) -> str:
    """The prompt of an inversion.

    Raises:
        DAMAGE: If its `.json` is damaged.
    """
    if place.size > MAX_MEMBER_BYTES:
        raise ValueError(f"{tar} is damaged: a .json has {place.size:,} bytes, allowed: {MAX_MEMBER_BYTES:,}")
    metadata = json.loads(MemberPlace(place.offset, place.size, row.json_sha256).read(tar))
    return str(metadata["prompt"])


def _text(value: Any) -> Any:
    """A cell; half a surrogate pair, which JSON can spell and no file can hold, becomes an escape."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
