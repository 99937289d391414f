"""The manifest of a part: a row of JSON for each image, done or failed. An image is committed when one names it."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nti_batch.records import Failure

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """What became of one image."""

    shard: str
    key: str
    """Empty for what is wrong with the shard as a whole."""

    status: Literal["done", "failed"]
    stage: str = ""
    error: str = ""
    psnr: float | None = None
    psnr_vae: float | None = None
    inner_steps: int | None = None
    """Updates over all timesteps."""

    forwards: int | None = None
    backwards: int | None = None
    seconds: float | None = None
    finished: float
    """When, in seconds since 1970."""

    sha256: str = ""
    """Of the `.safetensors` member."""

    @classmethod
    def of_inversion(cls, metadata: dict[str, Json]) -> "ManifestRow":
        """The row of an image that is done, from its `.json` member."""
        names = {f.name for f in dataclasses.fields(cls)}
        values = {name: value for name, value in metadata.items() if name in names}
        values["inner_steps"] = sum(metadata["inner_steps"])  # type: ignore[arg-type]
        return cls(status="done", **values)  # type: ignore[arg-type]

    @classmethod
    def of_failure(cls, failure: Failure) -> "ManifestRow":
        """The row of an image that has failed."""
        return cls(
            shard=failure.unit.shard,
            key=failure.key,
            status="failed",
            stage=failure.stage,
            error=failure.error,
            finished=time.time(),
        )


def read_manifest(manifest: Path) -> list[ManifestRow]:
    """The rows of one manifest.

    Raises:
        ValueError: If it is damaged, naming it and the line.
    """
    rows = []
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(ManifestRow(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{manifest}, line {number}, is damaged: {error}") from error
    return rows
