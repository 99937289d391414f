"""Rows of a manifest: the outcome of one record, done or failed.

A table lists the JSON keys of a row, so that renaming a field changes no file.
"""

import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from nti_batch.json_object import Json
from nti_batch.records import Failure, WorkUnit

Metadata = dict[str, Json]
"""Content of the `.json` member of a record."""


class Column(NamedTuple):
    """A JSON key of a row."""

    field: str
    """Field that holds the value."""

    types: tuple[type, ...]
    """Types that the value may have."""

    least: float = -1e15
    most: float = 1e15
    """Limits of a number."""

    only_true: bool = False
    """Whether a row has the key only if its value is true: a key that came later, which older rows lack."""


MAX_GENERATION = 1 << 30
LAST_SECOND = 253_402_300_799
"""End of the year 9999 in seconds since 1970; datetime knows no later time."""

_NUMBERS = frozenset((int, float))
_TEXT = (str,)
_OPTIONAL_NUMBER = (int, float, type(None))
_OPTIONAL_COUNT = (int, type(None))
_COMMON: Mapping[str, Column] = {
    "shard": Column("shard", _TEXT),
    "key": Column("key", _TEXT),
    "status": Column("status", _TEXT),
    "stage": Column("stage", _TEXT),
    "error": Column("error", _TEXT),
    "seconds": Column("seconds", _OPTIONAL_NUMBER, 0, 1e9),
    "finished": Column("finished", (int, float), 0, LAST_SECOND),
    "sha256": Column("sha256", _TEXT),
    "json_sha256": Column("json_sha256", _TEXT),
    "input_sha256": Column("input_sha256", _TEXT),
    "generation": Column("generation", (int,), 0, MAX_GENERATION),
}


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

    columns: ClassVar[Mapping[str, Column]]

    shard: str
    key: str
    """Empty for an error of the shard as a whole."""

    status: Literal["done", "failed", "recovered"]
    """'recovered' is said of a shard alone, which an earlier row calls damaged and which has now been read whole."""

    stage: str = ""
    error: str = ""
    seconds: float | None = None
    finished: float
    """Time of the outcome, in seconds since 1970."""

    sha256: str = ""
    """Checksum of the member beside the `.json`."""

    json_sha256: str = ""
    """Checksum of the `.json`."""

    input_sha256: str = ""
    """Checksum of what the record was computed from; empty if that could not be read."""

    generation: int = 0
    """Number of earlier rows of the record. Of the rows of a record, the one of the highest generation counts."""

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

    def values(self) -> dict[str, Json]:
        """The values of all columns."""
        return {key: getattr(self, column.field) for key, column in self.columns.items()}

    def to_json(self) -> dict[str, Json]:
        """The row as the manifest holds it."""
        return {key: value for key, value in self.values().items() if value or not self.columns[key].only_true}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If a key is missing or unknown, or a value has the wrong type.
        """
        if not cls._required() <= values.keys() <= cls.columns.keys():
            raise ValueError(f"a row has the keys {sorted(values)}, not {sorted(cls.columns)}")
        for key, value in values.items():
            column, kind = cls.columns[key], type(value)
            if kind not in column.types:
                raise ValueError(f"{key} of a row is {value!r}")
            if kind in _NUMBERS and not column.least <= value <= column.most:  # nan, too
                raise ValueError(f"{key} of a row is {value}, allowed: {column.least:g} to {column.most:g}")
        return cls(**{cls.columns[key].field: value for key, value in values.items()})

    @classmethod
    @cache
    def _required(cls) -> set[str]:
        """Keys that every row has."""
        return {key for key, column in cls.columns.items() if not column.only_true}

    @classmethod
    def of_metadata(cls, metadata: Metadata, json_sha256: str) -> Self:
        """The row of a finished record.

        Args:
            metadata: Content of its `.json` member.
            json_sha256: Checksum of that member.

        Raises:
            ValueError: If something is missing in the metadata, or has the wrong type.
        """
        outcome = {"status": "done", "stage": "", "error": "", "json_sha256": json_sha256}
        try:
            keys = cls._required() | (cls.columns.keys() & metadata.keys())
            values = {key: outcome[key] if key in outcome else cls._value(key, metadata) for key in keys}
            return cls.from_json(values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the .json of {metadata.get('key')!r} is damaged: {error}") from error

    @classmethod
    def _value(cls, key: str, metadata: Metadata) -> Any:
        """The value of a column, from the metadata of a record."""
        return metadata[key]

    @classmethod
    def of_failure(cls, failure: Failure) -> Self:
        """The row of a failed record."""
        return cls(**cls._of_failure(failure))

    @classmethod
    def of_recovery(cls, unit: WorkUnit) -> Self:
        """The row of a damaged shard that has now been read whole."""
        return replace(cls.of_failure(Failure(unit, "", "", "")), status="recovered")

    @classmethod
    def _of_failure(cls, failure: Failure) -> dict[str, Any]:
        return {
            "shard": failure.unit.shard,
            "key": failure.key,
            "status": "failed",
            "stage": failure.stage,
            "error": failure.error,
            "finished": time.time(),
            "input_sha256": failure.input_sha256,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionRow(Row):
    """Outcome of one image."""

    columns: ClassVar[Mapping[str, Column]] = {
        **_COMMON,
        "prompt_truncated": Column("prompt_truncated", (bool,)),
        "psnr": Column("psnr", _OPTIONAL_NUMBER),
        "psnr_vae": Column("psnr_vae", _OPTIONAL_NUMBER),
        "inner_steps": Column("inner_steps", _OPTIONAL_COUNT),
        "forwards": Column("forwards", _OPTIONAL_COUNT),
        "backwards": Column("backwards", _OPTIONAL_COUNT),
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
    def id(self) -> str:
        """Stem of the image's members, unique within its shard."""
        return member_name(self.key)

    @property
    def has_truncated_prompt(self) -> bool:
        """Whether the text encoder reads only the beginning of the prompt."""
        return self.prompt_truncated

    def metrics(self) -> dict[str, float]:
        """PSNR of the reconstruction and of the VAE round trip, in dB."""
        return _known(psnr=self.psnr, psnr_vae=self.psnr_vae)

    @classmethod
    def _value(cls, key: str, metadata: Metadata) -> Any:
        """The value of a column; metadata list the updates of each timestep."""
        value = metadata[key]
        return sum(value) if key == "inner_steps" and isinstance(value, list) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRow(Row):
    """Outcome of one edit."""

    columns: ClassVar[Mapping[str, Column]] = {
        **_COMMON,
        "name": Column("name", _TEXT),
        "edit_prompt": Column("edit_prompt", (str, type(None))),
        "request_sha256": Column("request_sha256", _TEXT),
        "psnr_unedited": Column("psnr_unedited", _OPTIONAL_NUMBER),
        "ssim_unedited": Column("ssim_unedited", _OPTIONAL_NUMBER),
        "mse_unedited": Column("mse_unedited", _OPTIONAL_NUMBER),
        "prompt_truncated": Column("prompt_truncated", (bool,), only_true=True),
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
    prompt_truncated: bool = False
    """Whether the text encoder reads only the beginning of the edit's prompt."""

    @property
    def id(self) -> str:
        """Stem of the edit's members, unique within its shard."""
        return member_name(self.key, self.name)

    @property
    def has_truncated_prompt(self) -> bool:
        """Whether the text encoder reads only the beginning of the edit's prompt."""
        return self.prompt_truncated

    def metrics(self) -> dict[str, float]:
        """Scores of the unedited part."""
        return _known(
            psnr_unedited=self.psnr_unedited, ssim_unedited=self.ssim_unedited, mse_unedited=self.mse_unedited
        )

    @classmethod
    def _of_failure(cls, failure: Failure) -> dict[str, Any]:
        # zero-argument super() does not work in a slotted dataclass
        return {**Row._of_failure(failure), "name": failure.name}


def _known(**scores: float | None) -> dict[str, float]:
    """The scores that are not None."""
    return {name: score for name, score in scores.items() if score is not None}


AnyRow = TypeVar("AnyRow", bound=Row)
