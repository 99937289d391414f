"""The list of edits that the page adds lines to: JSONL, as `nti-batch edit --data.edits` reads it."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.editing.requests import read_requests, request_cells, request_sha256
from nti_batch.files import atomic_write
from nti_batch.records import EditRequest


@dataclass(frozen=True, slots=True)
class EditList:
    """A list of edits."""

    path: Path
    shards: Sequence[str]
    """Names of the shards of the inversions."""

    def __post_init__(self) -> None:
        """Raise a ValueError for a file that cannot be JSONL."""
        if self.path.suffix.lower() == ".csv" or self.path.is_dir():
            raise ValueError(f"--edits is {str(self.path)!r}, allowed: a JSONL file, such as edits.jsonl")

    def add(self, request: EditRequest) -> str:
        """Append an edit; return its line.

        Args:
            request: The edit. An empty name becomes the first free number among the edits of its image.

        Raises:
            ValueError: If the list is damaged or cannot be written, or has the edit or its name.
        """
        text = self._read()
        known = {
            other.name: request_sha256(other)
            for other in (read_requests(self.path, list(self.shards), EditSettings()) if text.strip() else ())
            if (other.shard, other.key) == (request.shard, request.key)
        }
        same = [name for name, checksum in known.items() if checksum == request_sha256(request)]
        if same:
            raise ValueError(f"{self.path} has this edit of {request.key!r} already: its name is {same[0]!r}")
        if request.name in known:
            raise ValueError(f"{self.path} has an edit {request.name!r} of {request.key!r}: give another name")
        name = request.name or next(n for n in map(str, itertools.count(len(known))) if n not in known)
        line = json.dumps(request_cells(replace(request, name=name)))
        self._write(f"{text}\n{line}\n" if text and not text.endswith("\n") else f"{text}{line}\n")
        return line

    def _read(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path} cannot be read: {error}; give another --edits") from error

    def _write(self, text: str) -> None:
        try:
            atomic_write(self.path, text)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be written: {error.strerror}; give another --edits") from error
