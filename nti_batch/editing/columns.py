"""Columns of a list of edits: how a cell of a CSV, or a value of JSONL, becomes a value with a type.

A cell of a CSV writes words with numbers as `word=1.5;other word=2`, two words as `one;other`, a range of steps as
`0.1;0.5`, and other lists as in JSON. An empty cell is left out.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nti_batch.data.tables import Cells
from nti_batch.diffusion.edit_settings import StepRange, Words


@dataclass(frozen=True, slots=True)
class Column:
    """Reader of the cells of one column."""

    reader: Callable[[Any], object]
    allowed: str
    """Description of the allowed values, for the error message."""

    def read(self, name: str, value: object) -> Any:
        """The value of a cell, given as JSON or as text.

        Raises:
            ValueError: If the cell has another form; the text names the column, the cell and what is allowed.
        """
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


def _whole_number(value: str | int) -> int:
    number = int(value) if isinstance(value, str) else value
    if type(number) is not int:
        raise ValueError
    return number


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


def _range(value: str | list[str | float]) -> tuple[float, float]:
    steps = _steps(value)
    if not isinstance(steps, tuple):
        raise ValueError
    return steps


def _pair(value: str | list[str | list[str]]) -> tuple[Words, Words]:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else list(value.split(";"))
    first, second = map(_words, value)
    return first, second


def _words(value: str | list[str]) -> Words:
    return value.strip() if isinstance(value, str) else tuple(_text(word.strip()) for word in value)


def _whole_numbers(value: str | list[int]) -> tuple[int, ...]:
    numbers = json.loads(value) if isinstance(value, str) else value
    if not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
        raise ValueError
    return tuple(numbers)


_TEXT = Column(_text, "a text that is not empty")


_WHOLE_NUMBERS = Column(_whole_numbers, "a list of whole numbers")


REQUEST_COLUMNS = {
    "shard": _TEXT,
    "key": _TEXT,
    "name": _TEXT,
    "prompt": _TEXT,
    "edit_prompt": _TEXT,
    "mask": _WHOLE_NUMBERS,
    "mask_size": _WHOLE_NUMBERS,
}


_STEPS = "a number such as 0.4, a range [0.1, 0.5] or 0.1;0.5"

_WORDS = (
    "a word of the source's prompt and one of the edit's, "
    '["one", "other"] or one;other, or lists of words, [["one", "two"], "other"]'
)

SETTINGS_COLUMNS = {
    "attention": _TEXT,
    "kind": _TEXT,
    "cross_replace_steps": Column(
        _steps_by_word, f'{_STEPS}, or {{"default_": 0.4, "word": 1}} or default_=0.4;word=1'
    ),
    "self_replace_steps": Column(_steps, _STEPS),
    "masactrl_steps": Column(_steps, _STEPS),
    "masactrl_layers": Column(_range, "a range [0.6, 1] or 0.6;1"),
    "masactrl_words": Column(_pair, _WORDS),
    "masactrl_threshold": Column(_number, "a number"),
    "pnp_attention_steps": Column(_steps, _STEPS),
    "pnp_feature_steps": Column(_steps, _STEPS),
    "equalizer": Column(_numbers, 'words with a number each, {"word": 1.5} or word=1.5;other=2'),
    "blend_words": Column(_pair, _WORDS),
    "blend_threshold": Column(_number, "a number"),
    "blend_start": Column(_number, "a number"),
    "subtract_words": Column(_pair, _WORDS),
    "subtract_threshold": Column(_number, "a number"),
    "guidance_scale": Column(_number, "a number"),
    "skip_steps": Column(_number, "a number"),
    "proximal": _TEXT,
    "quantile": Column(_number, "a number"),
    "recon_lr": Column(_number, "a number"),
    "recon_start": Column(_number, "a number"),
    "dilate_mask": Column(_whole_number, "a whole number"),
}
"""Columns of the fields of `EditSettings`."""


def read_cells(cells: Cells, columns: Mapping[str, Column]) -> dict[str, Any]:
    """The values of those columns that a line has.

    Raises:
        ValueError: If a cell has another form than its column.
    """
    return {name: column.read(name, cells[name]) for name, column in columns.items() if cells.get(name) is not None}
