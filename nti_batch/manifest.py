"""The manifest of a part: a row of JSON for each image, done or failed. An image is committed when one names it."""

import dataclasses
import hashlib
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
    prompt_truncated: bool = False
    """Whether the end of the prompt was beyond what the text encoder reads."""

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
        """The row of an image that is done, from its `.json` member.

        Raises:
            ValueError: If something is missing there.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        values = {name: value for name, value in metadata.items() if name in names}
        try:
            values["inner_steps"] = sum(metadata["inner_steps"])  # type: ignore[arg-type]
            return cls(status="done", **values)  # type: ignore[arg-type]
        except (KeyError, TypeError) as error:
            raise ValueError(f"the .json of {metadata.get('key')!r} is damaged: {error}") from error

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


@dataclass(frozen=True, slots=True)
class Manifest:
    """The rows of a part; in the file, a last line has the checksums of the rows and of the tar."""

    rows: list[ManifestRow]
    part_sha256: str
    """Empty where no image is done, and so there is no tar."""

    def text(self) -> str:
        """The file's content."""
        rows = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in self.rows)
        return rows + json.dumps({"rows_sha256": _sha256(rows), "part_sha256": self.part_sha256}) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """The opposite of `text`.

        Raises:
            ValueError: If the file is damaged, naming it.
        """
        try:
            *lines, last = path.read_bytes().decode().splitlines(keepends=True)
            checksums = json.loads(last)
            if last != json.dumps(checksums) + "\n" or _sha256("".join(lines)) != checksums["rows_sha256"]:
                raise ValueError("the rows do not have the checksum in the last line")
            return cls([ManifestRow(**json.loads(line)) for line in lines], checksums["part_sha256"])
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
