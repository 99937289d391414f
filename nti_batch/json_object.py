"""Typed reading of a JSON object: each value is checked as it is read, and an error names the file and the key."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from sys import float_info
from typing import Any, NoReturn

from nti_batch.files import read_bounded

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


class JsonObject:
    """An object in a JSON file. Readers take a key and return its value with the type they name."""

    def __init__(self, values: object, file: Path | str, key: str = "") -> None:
        """Check that the values are an object.

        Args:
            values: Content of the object.
            file: File that holds it, for error messages.
            key: Dotted key of the object in the file, empty for the whole file.

        Raises:
            ValueError: If it is not an object.
        """
        self.file, self._prefix = file, f"{key}." if key else ""
        if not isinstance(values, dict):
            raise ValueError(f"{file}: {key or 'the content'} is {shown(values)}, allowed: a JSON object")
        self._values: Mapping[str, object] = values
        self._unread = dict.fromkeys(values)

    @classmethod
    def read(cls, path: Path, most: int) -> "JsonObject":
        """Read the object in a file.

        Args:
            path: The file.
            most: Largest size in bytes.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read otherwise, or holds no object; the text names it.
        """
        try:
            return cls(json.loads(read_bounded(path, most)), path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    def __contains__(self, key: str) -> bool:
        """Whether the object has a key."""
        return key in self._values

    def section(self, key: str) -> "JsonObject":
        """The object at a key."""
        return JsonObject(self._get(key), self.file, self._prefix + key)

    def value(self, key: str) -> object:
        """The value at a key, whatever its type."""
        return self._get(key)

    def get(self, key: str, default: object = None) -> object:
        """The value at a key, whatever its type, or a default if there is no such key."""
        return self._get(key) if key in self else default

    def array(self, key: str) -> list[object]:
        """The list at a key."""
        value = self._get(key)
        return value if isinstance(value, list) else self.reject(key, "a list")

    def text(self, key: str) -> str:
        """The string at a key."""
        value = self._get(key)
        return value if isinstance(value, str) else self.reject(key, "a string")

    def optional_text(self, key: str) -> str | None:
        """The string or null at a key."""
        value = self._get(key)
        return value if value is None or isinstance(value, str) else self.reject(key, "a string or null")

    def all_texts(self) -> dict[str, str]:
        """All values, which must be strings, by their keys."""
        return {key: self.text(key) for key in self._values}

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        """One of some strings."""
        value = self._get(key)
        if isinstance(value, str) and value in allowed:
            return value
        self.reject(key, " or ".join(map(repr, allowed)))

    def integer(self, key: str, minimum: int, maximum: int) -> int:
        """An integer within limits."""
        value = self._get(key)
        if type(value) is int and minimum <= value <= maximum:
            return value
        self.reject(key, f"an integer from {minimum} to {maximum}")

    def number(self, key: str) -> float:
        """A finite number."""
        value = self._get(key)
        # an integer may be too large for a float
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= float_info.max:
            return float(value)
        self.reject(key, "a finite number")

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self._get(key)
        return value if isinstance(value, bool) else self.reject(key, "true or false")

    def expect_all_read(self) -> None:
        """Raise a ValueError if the object has a key that nobody has read."""
        for key in self._unread:
            raise ValueError(
                f"{self.file}: {self._prefix}{key} is an unknown key, allowed: "
                f"{', '.join(name for name in self._values if name not in self._unread)}"
            )

    def reject(self, key: str, allowed: str) -> NoReturn:
        """Raise a ValueError about the value at a key."""
        raise ValueError(f"{self.file}: {self._prefix}{key} is {shown(self._values[key])}, allowed: {allowed}")

    def _get(self, key: str) -> object:
        if key not in self._values:
            raise ValueError(f"{self.file}: the key {self._prefix}{key} is missing")
        self._unread.pop(key, None)
        return self._values[key]


def shown(value: object) -> str:
    """A value as a message shows it: a file may hold a megabyte."""
    try:
        text = repr(value)
    except RecursionError:
        text = "a deeply nested value"
    return text if len(text) <= 80 else f"{text[:77]}..."


def without_repeated_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its keys and values, as the `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: If a key occurs twice: JSON would drop the first value.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {repeated!r} occurs more than once")
    return values
