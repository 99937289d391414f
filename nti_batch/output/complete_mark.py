"""The mark of a work unit of which no image is missing."""

import hashlib
from dataclasses import dataclass
from typing import Self

from nti_batch.json_object import Json, JsonObject

MAX_MARK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class CompleteMark:
    """Mark of a work unit that says that no image of it is missing."""

    images: int
    """Number of its rows that count."""

    input_state: str
    """State of the input, as `input_states` gives it."""

    def to_json(self) -> dict[str, Json]:
        """The mark as the file holds it, with its checksum."""
        return {"images": self.images, "input_state": self.input_state, "sha256": self._sha256()}

    @classmethod
    def from_json(cls, values: JsonObject) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If a key is missing, a value has the wrong type, or the checksum is another.
        """
        mark = cls(values.integer("images", 0, 1 << 62), values.text("input_state"))
        if values.text("sha256") != mark._sha256():
            values.reject("sha256", "the checksum of the other values")
        return mark

    def _sha256(self) -> str:
        return hashlib.sha256(f"{self.images} {self.input_state}".encode()).hexdigest()
