"""Columns of a list of edits: how a cell of a CSV, or a value of JSONL, becomes a value with a type.

A cell of a CSV writes words with numbers as `word=1.5;other word=2`, two words as `one;other`, a range of steps as
`0.1;0.5`, and other lists as in JSON. An empty cell is left out.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from nti_batch.data.tables import Cells
from nti_batch.diffusion.alignment import Kind
from nti_batch.diffusion.edit_settings import AttentionMethod, Proximal, StepRange, Words
from nti_batch.json_object import shown, without_repeated_keys
from nti_batch.phrases import is_unicode


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
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{name} is {shown(value)}, allowed: {self.allowed}") from error


def _text(value: str) -> str:
    if not isinstance(value, str) or not value.strip() or not is_unicode(value):
        raise ValueError
    return value


def _choice(choices: Sequence[str]) -> Column:
    """A column of one of some words."""

    def read(value: str) -> str:
        if value not in choices:
            raise ValueError
        return value

    return Column(read, " or ".join(map(repr, choices)))


def _number(value: str | float) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _whole_number(value: str | int) -> int:
    number = int(value) if isinstance(value, str) else value
    if type(number) is not int:
        raise ValueError
    return number


def _read_json(value: Any) -> Any:
    """The value of a cell that is written as in JSON; other values as they are."""
    if isinstance(value, str) and value.startswith(("{", "[")):
        return json.loads(value, object_pairs_hook=without_repeated_keys)
    return value


def _pairs(value: str | Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Words, each with what a cell says of it."""
    pairs = [part.rpartition("=")[::2] for part in value.split(";")] if isinstance(value, str) else value.items()
    return [(_text(word.strip()), said) for word, said in pairs]


def _numbers(value: str | Mapping[str, str | float]) -> dict[str, float]:
    return without_repeated_keys([(word, _number(number)) for word, number in _pairs(_read_json(value))])


def _steps(value: str | float | list[str | float]) -> StepRange:
    value = _read_json(value)
    parts = value.split(";") if isinstance(value, str) and ";" in value else value
    if isinstance(parts, list):
        start, end = map(_number, parts)
        return start, end
    return _number(parts)


def _steps_by_word(value: str | float | list[str | float] | Mapping[str, Any]) -> StepRange | dict[str, StepRange]:
    value = _read_json(value)
    if isinstance(value, Mapping) or (isinstance(value, str) and "=" in value):
        return without_repeated_keys([(word, _steps(steps)) for word, steps in _pairs(value)])
    return _steps(value)


def _range(value: str | list[str | float]) -> tuple[float, float]:
    steps = _steps(value)
    if not isinstance(steps, tuple):
        raise ValueError
    return steps


def _pair(value: str | list[str | list[str]]) -> tuple[Words, Words]:
    value = _read_json(value)
    value = list(value.split(";")) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise ValueError
    first, second = map(_words, value)
    return first, second


def _words(value: str | list[str]) -> Words:
    if not isinstance(value, str | list):
        raise ValueError
    return value.strip() if isinstance(value, str) else tuple(_text(word.strip()) for word in value)


def _whole_numbers(value: str | list[int]) -> tuple[int, ...]:
    numbers = _read_json(value)
    if not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
        raise ValueError
    return tuple(numbers)


_TEXT = Column(_text, "a text in Unicode that is not empty")


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
    "attention": _choice(get_args(AttentionMethod)),
    "kind": _choice(get_args(Kind)),
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
    "proximal": _choice(get_args(Proximal)),
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
