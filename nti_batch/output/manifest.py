"""The manifest of a part: a row of JSON for each record, done or failed. A record is committed when a row names it.

The last but one line names the tar, its checksum and what made it; the last line holds the checksum of all lines before
it.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from nti_batch.files import open_regular, read_bounded
from nti_batch.json_object import JsonObject
from nti_batch.output.format_version import check_format_version, format_versions
from nti_batch.output.manifest_rows import MAX_GENERATION, AnyRow
from nti_batch.output.origin import Origin

_MAX_TAIL = 1 << 16
"""Bytes that hold the last two lines of every manifest."""

MAX_MANIFEST_BYTES = 1 << 26
"""Largest manifest that is read. A part ends long before its manifest is as large."""


@dataclass(frozen=True, slots=True)
class Manifest(Generic[AnyRow]):
    """The rows of a part, and its tar."""

    rows: Sequence[AnyRow]
    tar: Path | None
    """Path of the tar; None if no record is done, since then there is none."""

    tar_sha256: str
    """Checksum of the tar; empty without one."""

    origin: Origin
    """What made the part."""

    def text(self) -> str:
        """Content of the file."""
        rows = "".join(json.dumps(row.to_json()) + "\n" for row in self.rows)
        footer = json.dumps(
            {
                **format_versions(),
                "tar": self.tar and self.tar.name,
                "tar_sha256": self.tar_sha256,
                "generation": max((row.generation for row in self.rows), default=0),
                "origin": self.origin.to_json(),
            }
        )
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
            manifest = cls(
                rows=[row_type.from_json(json.loads(line)) for line in lines],
                tar=_tar(path, footer),
                tar_sha256=footer.text("tar_sha256"),
                origin=Origin.from_json(footer.section("origin")),
            )
            if manifest.tar is None and any(row.status == "done" for row in manifest.rows):
                raise ValueError("it has finished records and names no tar")
            return manifest
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def check_tar(self) -> Path:
        """Compare the checksum of the tar, and return its path.

        Raises:
            ValueError: If it is not the one that this manifest names; the text names the tar.
        """
        assert self.tar is not None
        try:
            with open_regular(self.tar) as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.tar} is damaged: {error}") from error
        if checksum != self.tar_sha256:
            raise ValueError(f"{self.tar} is damaged: it does not have the checksum in its manifest")
        return self.tar


def read_generation(path: Path) -> int:
    """Read the highest generation of a manifest's rows, from the end of the file; 0 if the file is damaged."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_TAIL))
            footer = JsonObject(json.loads(file.read().splitlines()[-2]), path)
        return footer.integer("generation", 0, MAX_GENERATION)
    except (OSError, ValueError, IndexError, RecursionError):
        return 0


def _tar(manifest: Path, footer: JsonObject) -> Path | None:
    name = footer.optional_text("tar")
    if name is not None and (name != os.path.basename(name) or not name.endswith(".tar")):
        footer.reject("tar", "the name of a .tar beside the manifest, or null")
    return None if name is None else manifest.with_name(name)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
