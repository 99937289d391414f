"""Reads which edits somebody asks for: JSONL, or CSV with a line of column names, or a PIE-Bench folder.

    shard, key       of the image; the shard may be left out where the inversions have only one
    name             of the edit; left out, its number among the edits of its image, from 0
    prompt           the source's, to be compared with the inversion's
    edit_prompt      left out, the source is rebuilt
    mask, mask_size  what the edit may change, as [start, length, ...] on a grid of [height, width]
    the fields of `EditSettings`; those left out are the job's

In a cell of a CSV, as on the command line, words with numbers are written `word=1.5;other word=2`, two words
`one;other`, a range of steps `0.1;0.5`, and lists as in JSON. An empty cell is left out.
"""

import csv
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nti_batch.data.tables import Cells, csv_lines, json_lines
from nti_batch.diffusion.edits import EditSettings, StepRange
from nti_batch.output.manifest import member_name
from nti_batch.output.serialization import StoredInversion
from nti_batch.records import CaptionedImage, EditRequest, Mask, WorkUnit

_TOLD = 5


@dataclass(frozen=True, slots=True, eq=False)
class ImageEdits:
    """An inverted image and what is asked of it."""

    unit: WorkUnit
    stored: StoredInversion
    requests: tuple[EditRequest, ...]
    original: CaptionedImage | None
    """The input, where a request needs it and it is to be had."""


def request_id(request: EditRequest) -> str:
    """What its row and its members in a part are called."""
    return member_name(request.key, request.name)


def request_sha256(request: EditRequest) -> str:
    """A checksum of what changes the picture or its scores."""
    asked = (
        request.edit_prompt,
        request.settings.to_json(),
        request.mask and dataclasses.asdict(request.mask),
    )
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def read_requests(path: Path, shards: list[str], defaults: EditSettings) -> list[EditRequest]:
    """The edits that a file asks for.

    Args:
        path: `.csv`, otherwise JSONL.
        shards: Names of the shards there are.
        defaults: For the settings that are left out.

    Raises:
        ValueError: If something in it cannot be understood, naming the first lines of that kind.
    """
    try:
        lines = list(csv_lines(path) if path.suffix.lower() == ".csv" else json_lines(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"edits {str(path)!r} cannot be read: {error}") from error
    requests: dict[tuple[str, str, str], EditRequest] = {}
    counts: Counter[tuple[str, str]] = Counter()
    wrong = []
    for number, cells in lines:
        try:
            if isinstance(cells, ValueError):
                raise cells
            request = _request(cells, shards, defaults, counts)
            identity = (request.shard, request.key, request.name)
            if identity in requests:
                raise ValueError(f"edit {request.name!r} of {request.key!r} is there already; give it another name")
            requests[identity] = request
        except ValueError as error:
            wrong.append(f"{path}:{number}: {error}")
    if wrong:
        more = [f"and {len(wrong) - _TOLD} more"] if len(wrong) > _TOLD else []
        raise ValueError("; ".join(wrong[:_TOLD] + more))
    return list(requests.values())


def read_settings(cells: Cells, defaults: EditSettings) -> EditSettings:
    """The settings of an edit; those that are not among the cells are the defaults.

    Raises:
        ValueError: If one cannot be understood, or is out of range.
    """
    given = {name: c.read(name, cells[name]) for name, c in _SETTINGS.items() if cells.get(name) is not None}
    return dataclasses.replace(defaults, **given) if given else defaults


def _request(cells: Cells, shards: list[str], defaults: EditSettings, counts: Counter[tuple[str, str]]) -> EditRequest:
    """One edit; `counts` has those of each image so far."""
    columns = [*_COLUMNS, *_SETTINGS]
    if unknown := [name for name in cells if name not in columns]:
        raise ValueError(f"there is no column {', '.join(map(repr, unknown))}, allowed: {', '.join(columns)}")
    given = {name: c.read(name, cells[name]) for name, c in _COLUMNS.items() if cells.get(name) is not None}
    if "key" not in given:
        raise ValueError("the key of the image is missing")
    shard = given.get("shard", shards[0] if len(shards) == 1 else None)
    if shard not in shards:
        said = f"shard {shard!r} is unknown" if shard else "the shard of the image is missing"
        raise ValueError(f"{said}; the inversions are of {len(shards)} shards, such as {shards[0]!r}")
    if ("mask" in given) != ("mask_size" in given):
        raise ValueError("mask and mask_size belong together, and one is missing")
    image = (shard, given["key"])
    counts[image] += 1
    return EditRequest(
        shard=shard,
        key=given["key"],
        name=given.get("name", str(counts[image] - 1)),
        prompt=given.get("prompt"),
        edit_prompt=given.get("edit_prompt"),
        settings=read_settings(cells, defaults),
        mask=_mask(given["mask"], given["mask_size"]) if "mask" in given else None,
    )


def _mask(runs: tuple[int, ...], size: tuple[int, ...]) -> Mask:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"mask_size is {list(size)}, allowed: [height, width], both at least 1")
    if len(runs) % 2 or any(n < 0 for n in runs):
        raise ValueError(
            "mask has an odd number of numbers, or one below 0; allowed: [start, length, start, length, ...]"
        )
    return Mask(runs, *size)


@dataclass(frozen=True, slots=True)
class _Column:
    """How a cell is read."""

    reader: Callable[[Any], object]
    allowed: str

    def read(self, name: str, value: object) -> Any:
        """What a cell says, as JSON or as text."""
        try:
            return self.reader(value)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{name} is {value!r}, allowed: {self.allowed}") from error


def _text(value: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _number(value: str | float) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _numbers(value: str | Mapping[str, str | float]) -> dict[str, float]:
    if isinstance(value, str):
        value = {word: number for word, _, number in (part.rpartition("=") for part in value.split(";"))}
    return {_text(word.strip()): _number(number) for word, number in value.items()}


def _steps(value: str | float | list[str | float]) -> StepRange:
    if isinstance(value, str) and value.startswith("["):
        return _steps(json.loads(value))
    parts = value.split(";") if isinstance(value, str) and ";" in value else value
    if isinstance(parts, list):
        start, end = map(_number, parts)
        return start, end
    return _number(parts)


def _steps_by_word(value: str | float | list[str | float] | Mapping[str, Any]) -> StepRange | dict[str, StepRange]:
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    elif isinstance(value, str) and "=" in value:
        value = {word: steps for word, _, steps in (part.rpartition("=") for part in value.split(";"))}
    if isinstance(value, Mapping):
        return {_text(word.strip()): _steps(steps) for word, steps in value.items()}
    return _steps(value)


def _pair(value: str | list[str]) -> tuple[str, str]:
    first, second = (_text(word.strip()) for word in (value.split(";") if isinstance(value, str) else value))
    return first, second


def _whole_numbers(value: str | list[int]) -> tuple[int, ...]:
    numbers = json.loads(value) if isinstance(value, str) else value
    if not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
        raise ValueError
    return tuple(numbers)


_TEXT = _Column(_text, "a text that is not empty")


_WHOLE_NUMBERS = _Column(_whole_numbers, "a list of whole numbers")


_COLUMNS = {
    "shard": _TEXT,
    "key": _TEXT,
    "name": _TEXT,
    "prompt": _TEXT,
    "edit_prompt": _TEXT,
    "mask": _WHOLE_NUMBERS,
    "mask_size": _WHOLE_NUMBERS,
}


_STEPS = "a number such as 0.4, a range [0.1, 0.5] or 0.1;0.5"

_SETTINGS = {
    "kind": _TEXT,
    "cross_replace_steps": _Column(
        _steps_by_word, f'{_STEPS}, or {{"default_": 0.4, "word": 1}} or default_=0.4;word=1'
    ),
    "self_replace_steps": _Column(_steps, _STEPS),
    "equalizer": _Column(_numbers, 'words with a number each, {"word": 1.5} or word=1.5;other=2'),
    "blend_words": _Column(
        _pair, 'a word of the source\'s prompt and one of the edit\'s, ["one", "other"] or one;other'
    ),
    "blend_threshold": _Column(_number, "a number"),
    "blend_start": _Column(_number, "a number"),
}
"""How each field of `EditSettings` is read."""
