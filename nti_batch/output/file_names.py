"""Names of exported files that a person can read and any file system can hold."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

_MAX_BYTES = 80
"""Bytes of a name; file systems take 255, and a file's name has two of these, a checksum and an ending."""

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³")}
"""Names of devices on Windows."""

_Id = TypeVar("_Id")


def readable_name(text: str) -> str:
    """Letters, digits, hyphens and underscores of a text, with an underscore for anything else.

    It leads out of no folder, and is not empty, hidden, an option of a command or a device.
    """
    kept = (
        letter if letter in "-_" or unicodedata.category(letter)[0] in "LMN" else "_"
        for letter in unicodedata.normalize("NFC", text)
    )
    name = "".join(kept).encode()[:_MAX_BYTES].decode(errors="ignore")
    return f"_{name}" if not name or name.startswith("-") or name.lower() in _RESERVED else name


def distinct_names(wanted: Mapping[_Id, str]) -> dict[_Id, str]:
    """Names that differ by more than case and the form of Unicode; a checksum is added to those that do not.

    Args:
        wanted: Name that each thing should have, by the thing's id.
    """
    counts = Counter(map(_folded, wanted.values()))
    taken = {name for name, count in counts.items() if count == 1}
    found = {}
    for id, name in wanted.items():
        chosen, checksum = name, repr(id)
        if counts[_folded(name)] > 1:
            while chosen == name or _folded(chosen) in taken:
                checksum = hashlib.sha256(checksum.encode()).hexdigest()
                chosen = f"{name}-{checksum[:8]}"
            taken.add(_folded(chosen))
        found[id] = chosen
    return found


def _folded(name: str) -> str:
    """What file systems that ignore case or the form of Unicode compare, or less."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
