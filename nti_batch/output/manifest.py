"""The manifest of a part: a row of JSON for each record, done or failed. A record is committed when a row names it.

The last but one line holds the versions that wrote the part and the checksum of the tar; the last line holds the
checksum of all lines before it.
"""

import hashlib
import json
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from nti_batch.json_object import Json, JsonObject
from nti_batch.output.format import check_format_version, format_versions
from nti_batch.records import Failure

Metadata = dict[str, Json]
"""Content of the `.json` member of a record."""

_Types = tuple[type, ...]
_TEXT: _Types = (str,)
_FLAG: _Types = (bool,)
_NUMBER: _Types = (int, float)
_OPTIONAL_TEXT: _Types = (str, type(None))
_OPTIONAL_COUNT: _Types = (int, type(None))
_OPTIONAL_NUMBER: _Types = (int, float, type(None))
_COMMON: Mapping[str, _Types] = {
    "shard": _TEXT,
    "key": _TEXT,
    "status": _TEXT,
    "stage": _TEXT,
    "error": _TEXT,
    "seconds": _OPTIONAL_NUMBER,
    "finished": _NUMBER,
    "sha256": _TEXT,
    "json_sha256": _TEXT,
}
"""JSON keys of every row, with the types of their values."""


def member_name(key: str, name: str = "") -> str:
    """Stem of the members of a record in a tar.

    Every special character, the dot and the plus sign included, becomes %XX: no name leaves its folder.

    Args:
        key: Key of the image.
        name: Name of the edit; empty for an inversion.
    """
    parts = (urllib.parse.quote(part, safe="").replace(".", "%2E") for part in (key, name))
    return "+".join(parts) if name else next(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(ABC):
    """Outcome of one record."""

    columns: ClassVar[Mapping[str, _Types]]

    shard: str
    key: str
    """Empty for an error of the shard as a whole."""

    status: Literal["done", "failed"]
    stage: str = ""
    error: str = ""
    seconds: float | None = None
    finished: float
    """Time of the outcome, in seconds since 1970."""

    sha256: str = ""
    """Checksum of the member beside the `.json`."""

    json_sha256: str = ""
    """Checksum of the `.json`."""

    @property
    @abstractmethod
    def id(self) -> str:
        """Stem of the record's members, unique within its shard."""

    @property
    def has_truncated_prompt(self) -> bool:
        """Whether the text encoder reads only the beginning of the prompt."""
        return False

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Scores of the record by name."""

    @abstractmethod
    def to_json(self) -> dict[str, Json]:
        """The row as the manifest holds it."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If a key is missing or unknown, or a value has the wrong type.
        """
        if values.keys() != cls.columns.keys():
            raise ValueError(f"a row has the keys {sorted(values)}, not {sorted(cls.columns)}")
        for key, types in cls.columns.items():
            if type(values[key]) not in types:
                raise ValueError(f"{key} of a row is {values[key]!r}")
        return cls._of_columns(values)

    @classmethod
    @abstractmethod
    def _of_columns(cls, values: dict[str, Any]) -> Self:
        """A row from the values of its columns, which have the right types."""

    @classmethod
    def of_metadata(cls, metadata: Metadata, json_sha256: str) -> Self:
        """The row of a finished record.

        Args:
            metadata: Content of its `.json` member.
            json_sha256: Checksum of that member.

        Raises:
            ValueError: If something is missing in the metadata, or has the wrong type.
        """
        known = {"status": "done", "stage": "", "error": "", "json_sha256": json_sha256}
        try:
            values: dict[str, Any] = {**{key: metadata[key] for key in cls.columns if key not in known}, **known}
            if isinstance(steps := values.get("inner_steps"), list):
                values["inner_steps"] = sum(steps)
            return cls.from_json({key: values[key] for key in cls.columns})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the .json of {metadata.get('key')!r} is damaged: {error}") from error

    @classmethod
    @abstractmethod
    def of_failure(cls, failure: Failure) -> Self:
        """The row of a failed record."""

    def _common(self) -> dict[str, Json]:
        return {
            "shard": self.shard,
            "key": self.key,
            "status": self.status,
            "stage": self.stage,
            "error": self.error,
            "seconds": self.seconds,
            "finished": self.finished,
            "sha256": self.sha256,
            "json_sha256": self.json_sha256,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionRow(Row):
    """Outcome of one image."""

    columns: ClassVar[Mapping[str, _Types]] = {
        **_COMMON,
        "prompt_truncated": _FLAG,
        "psnr": _OPTIONAL_NUMBER,
        "psnr_vae": _OPTIONAL_NUMBER,
        "inner_steps": _OPTIONAL_COUNT,
        "forwards": _OPTIONAL_COUNT,
        "backwards": _OPTIONAL_COUNT,
    }

    prompt_truncated: bool = False
    """Whether the text encoder reads only the beginning of the prompt."""

    psnr: float | None = None
    psnr_vae: float | None = None
    inner_steps: int | None = None
    """Updates over all timesteps."""

    forwards: int | None = None
    backwards: int | None = None

    @property
    def has_truncated_prompt(self) -> bool:
        """Whether the text encoder reads only the beginning of the prompt."""
        return self.prompt_truncated

    @property
    def id(self) -> str:
        """Stem of the image's members, unique within its shard."""
        return member_name(self.key)

    def metrics(self) -> dict[str, float]:
        """PSNR of the reconstruction and of the VAE round trip, in dB."""
        return _given(psnr=self.psnr, psnr_vae=self.psnr_vae)

    def to_json(self) -> dict[str, Json]:
        """The row as the manifest holds it."""
        return {
            **self._common(),
            "prompt_truncated": self.prompt_truncated,
            "psnr": self.psnr,
            "psnr_vae": self.psnr_vae,
            "inner_steps": self.inner_steps,
            "forwards": self.forwards,
            "backwards": self.backwards,
        }

    @classmethod
    def _of_columns(cls, values: dict[str, Any]) -> Self:
        return cls(
            **_common_columns(values),
            prompt_truncated=values["prompt_truncated"],
            psnr=values["psnr"],
            psnr_vae=values["psnr_vae"],
            inner_steps=values["inner_steps"],
            forwards=values["forwards"],
            backwards=values["backwards"],
        )

    @classmethod
    def of_failure(cls, failure: Failure) -> Self:
        """The row of a failed image."""
        return cls(**_failure_columns(failure))


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRow(Row):
    """Outcome of one edit."""

    columns: ClassVar[Mapping[str, _Types]] = {
        **_COMMON,
        "name": _TEXT,
        "edit_prompt": _OPTIONAL_TEXT,
        "request_sha256": _TEXT,
        "psnr_unedited": _OPTIONAL_NUMBER,
        "ssim_unedited": _OPTIONAL_NUMBER,
        "mse_unedited": _OPTIONAL_NUMBER,
    }

    name: str
    """Name of the edit, unique among the edits of its image."""

    edit_prompt: str | None = None
    """None for a reconstruction of the source, and for an edit that failed."""

    request_sha256: str = ""
    """Checksum of the request."""

    psnr_unedited: float | None = None
    """PSNR outside the mask against the input, in dB; None without a mask or without the input."""

    ssim_unedited: float | None = None
    mse_unedited: float | None = None

    @property
    def id(self) -> str:
        """Stem of the edit's members, unique within its shard."""
        return member_name(self.key, self.name)

    def metrics(self) -> dict[str, float]:
        """Scores of the unedited part."""
        return _given(
            psnr_unedited=self.psnr_unedited, ssim_unedited=self.ssim_unedited, mse_unedited=self.mse_unedited
        )

    def to_json(self) -> dict[str, Json]:
        """The row as the manifest holds it."""
        return {
            **self._common(),
            "name": self.name,
            "edit_prompt": self.edit_prompt,
            "request_sha256": self.request_sha256,
            "psnr_unedited": self.psnr_unedited,
            "ssim_unedited": self.ssim_unedited,
            "mse_unedited": self.mse_unedited,
        }

    @classmethod
    def _of_columns(cls, values: dict[str, Any]) -> Self:
        return cls(
            **_common_columns(values),
            name=values["name"],
            edit_prompt=values["edit_prompt"],
            request_sha256=values["request_sha256"],
            psnr_unedited=values["psnr_unedited"],
            ssim_unedited=values["ssim_unedited"],
            mse_unedited=values["mse_unedited"],
        )

    @classmethod
    def of_failure(cls, failure: Failure) -> Self:
        """The row of a failed edit."""
        return cls(**_failure_columns(failure), name=failure.name)


def _common_columns(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "shard": values["shard"],
        "key": values["key"],
        "status": values["status"],
        "stage": values["stage"],
        "error": values["error"],
        "seconds": values["seconds"],
        "finished": values["finished"],
        "sha256": values["sha256"],
        "json_sha256": values["json_sha256"],
    }


def _failure_columns(failure: Failure) -> dict[str, Any]:
    return {
        "shard": failure.unit.shard,
        "key": failure.key,
        "status": "failed",
        "stage": failure.stage,
        "error": failure.error,
        "finished": time.time(),
    }


def _given(**scores: float | None) -> dict[str, float]:
    """The scores that there are."""
    return {name: score for name, score in scores.items() if score is not None}


AnyRow = TypeVar("AnyRow", bound=Row)


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
            *lines, last, checksum = path.read_bytes().decode().splitlines(keepends=True)
            footer = JsonObject(json.loads(last), path)
            check_format_version(footer)
            if checksum != json.dumps({"sha256": _sha256("".join(lines) + last.removesuffix("\n"))}) + "\n":
                raise ValueError("its content does not have the checksum in its last line")
            return cls([row_type.from_json(json.loads(line)) for line in lines], footer.text("part_sha256"))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def check_part(self, part: Path) -> None:
        """Compare the checksum of a tar.

        Raises:
            ValueError: If the tar is not the one that this manifest names; the text names the tar.
        """
        try:
            with open(part, "rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"{part} is damaged: {error}") from error
        if checksum != self.part_sha256:
            raise ValueError(f"{part} is damaged: it does not have the checksum in its manifest")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
