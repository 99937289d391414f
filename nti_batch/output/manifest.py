"""The manifest of a part: a row of JSON for each record, done or failed. A record is committed when a row names it.

The last but one line holds the versions that wrote the part and the checksum of the tar; the last line holds the
checksum of all lines before it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from nti_batch.files import open_regular, read_bounded
from nti_batch.json_object import JsonObject
from nti_batch.output.format_version import check_format_version, format_versions
from nti_batch.output.manifest_rows import AnyRow

MAX_MANIFEST_BYTES = 1 << 26
"""Largest manifest that is read. A part ends long before its manifest is as large."""


@dataclass(frozen=True, slots=True)
class Manifest(Generic[AnyRow]):
    """The rows of a part and the checksum of its tar."""

    rows: list[AnyRow]
    part_sha256: str
    """Empty if no record is done: then there is no tar."""

    def text(self) -> str:
        """Content of the file."""
        rows = "".join(json.dumps(row.to_json()) + "\n" for row in self.rows)
        footer = json.dumps({**format_versions(), "part_sha256": self.part_sha256})
        checksum = json.dumps({"sha256": _sha256(rows + footer)})
        return f"{rows}{footer}\n{checksum}\n"

    @classmethod
    def read(cls, path: Path, row_type: type[AnyRow]) -> "Manifest[AnyRow]":
        """Read what `text` gave.

        Raises:
            ValueError: If the file is damaged or a newer nti_batch wrote it, naming the file.
        """
        try:
            *lines, last, checksum = read_bounded(path, MAX_MANIFEST_BYTES).decode().splitlines(keepends=True)
            footer = JsonObject(json.loads(last), path)
            check_format_version(footer)
            if checksum != json.dumps({"sha256": _sha256("".join(lines) + last.removesuffix("\n"))}) + "\n":
                raise ValueError("its content does not have the checksum in its last line")
            return cls([row_type.from_json(json.loads(line)) for line in lines], footer.text("part_sha256"))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def check_part(self, part: Path) -> None:
        """Compare the checksum of a tar.

        Raises:
            ValueError: If the tar is not the one that this manifest names; the text names the tar.
        """
        try:
            with open_regular(part) as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError) as error:
            raise ValueError(f"{part} is damaged: {error}") from error
        if checksum != self.part_sha256:
            raise ValueError(f"{part} is damaged: it does not have the checksum in its manifest")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
