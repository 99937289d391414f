"""The manifest of a part: a row of JSON for each record, done or failed. A record is committed when one names it."""

import dataclasses
import hashlib
import json
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from nti_batch.records import Failure

if TYPE_CHECKING:
    from typing import Self

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


def member_name(key: str, name: str = "") -> str:
    """What the image of this key, or an edit of it, is called in a tar.

    It stays in its folder: everything special, the dot and the plus too, becomes %XX.
    """
    parts = (urllib.parse.quote(part, safe="").replace(".", "%2E") for part in (key, name))
    return "+".join(parts) if name else next(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one record."""

    shard: str
    key: str
    """Empty for what is wrong with the shard as a whole."""

    status: Literal["done", "failed"]
    stage: str = ""
    error: str = ""
    seconds: float | None = None
    finished: float
    """When, in seconds since 1970."""

    sha256: str = ""
    """Of the member beside the `.json`."""

    json_sha256: str = ""
    """Of the `.json`; empty in manifests that were written before there was one."""

    @property
    def id(self) -> str:
        """What the record is called among those of its shard."""
        return member_name(self.key)

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Json]) -> "Self":
        """The row of a record that is done, from its `.json` member.

        Raises:
            ValueError: If something is missing there.
        """
        try:
            return cls(status="done", **cls._of_done(metadata))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the .json of {metadata.get('key')!r} is damaged: {error}") from error

    @classmethod
    def of_failure(cls, failure: Failure) -> "Self":
        """The row of a record that has failed."""
        told = {name: getattr(failure, name) for name in ("key", "name", "stage", "error")}
        return cls(shard=failure.unit.shard, status="failed", finished=time.time(), **cls._known(told))

    @classmethod
    def _of_done(cls, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """What a row takes from metadata."""
        return cls._known(metadata)

    @classmethod
    def _known(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those that a row has."""
        return {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow(Row):
    """What became of one image."""

    prompt_truncated: bool = False
    """Whether the end of the prompt was beyond what the text encoder reads."""

    psnr: float | None = None
    psnr_vae: float | None = None
    inner_steps: int | None = None
    """Updates over all timesteps."""

    forwards: int | None = None
    backwards: int | None = None

    @classmethod
    def _of_done(cls, metadata: Mapping[str, Any]) -> dict[str, Any]:
        return {**cls._known(metadata), "inner_steps": sum(metadata["inner_steps"])}


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRow(Row):
    """What became of one edit."""

    name: str
    """Of the edit, once among those of its image."""

    edit_prompt: str | None = None
    """None where the source was rebuilt, or the edit has failed."""

    request_sha256: str = ""
    """Of what was asked for."""

    psnr_unedited: float | None = None
    """Outside the mask against the input, in dB; None without a mask or without the input."""

    ssim_unedited: float | None = None
    mse_unedited: float | None = None

    @property
    def id(self) -> str:
        """What the edit is called among those of its shard."""
        return member_name(self.key, self.name)


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True, slots=True)
class Manifest(Generic[AnyRow]):
    """The rows of a part; in the file, a last line has the checksums of the rows and of the tar."""

    rows: list[AnyRow]
    part_sha256: str
    """Empty where no record is done, and so there is no tar."""

    def text(self) -> str:
        """The file's content."""
        rows = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in self.rows)
        return rows + json.dumps({"rows_sha256": _sha256(rows), "part_sha256": self.part_sha256}) + "\n"

    @classmethod
    def read(cls, path: Path, row_type: type[AnyRow]) -> "Manifest[AnyRow]":
        """The opposite of `text`.

        Raises:
            ValueError: If the file is damaged, naming it.
        """
        try:
            *lines, last = path.read_bytes().decode().splitlines(keepends=True)
            checksums = json.loads(last)
            if last != json.dumps(checksums) + "\n" or _sha256("".join(lines)) != checksums["rows_sha256"]:
                raise ValueError("the rows do not have the checksum in the last line")
            return cls([row_type(**json.loads(line)) for line in lines], checksums["part_sha256"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def check_part(self, part: Path) -> None:
        """Compare the checksum of a tar.

        Raises:
            ValueError: If it is not that of this manifest's part, naming the tar.
        """
        checksum = hashlib.sha256()
        try:
            with open(part, "rb") as file:
                while chunk := file.read(1 << 20):
                    checksum.update(chunk)
        except OSError as error:
            raise ValueError(f"{part} is damaged: {error}") from error
        if checksum.hexdigest() != self.part_sha256:
            raise ValueError(f"{part} is damaged: it does not have the checksum in its manifest")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
