"""Rules for the fields of a model's JSON files: which values a field may have, and the words that say so."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nti_batch.json_object import JsonObject


@dataclass(frozen=True, slots=True)
class Rule:
    """Values that a field may have."""

    allowed: str
    """The values, in words."""

    accepts: Callable[[object], bool]
    """Whether a value is one of them."""


Rules = Mapping[str, Rule]


def check_fields(config: JsonObject, rules: Rules, hint: str) -> None:
    """Check the fields that a file has; diffusers and transformers have defaults for the others.

    Args:
        config: Content of the file.
        rules: Rule of each field.
        hint: End of an error message.

    Raises:
        ValueError: If a field has a value that its rule does not accept.
    """
    for key, rule in rules.items():
        if key in config and not rule.accepts(config.value(key)):
            config.reject(key, f"{rule.allowed}; {hint}")


def one_of(*values: str | int | bool | None) -> Rule:
    """Some values; 1 is not true, and 0 is not false."""
    kinds = [(type(value) is bool, value) for value in values]
    return Rule(" or ".join(map(json.dumps, values)), lambda value: (type(value) is bool, value) in kinds)


def integer(minimum: int, maximum: int) -> Rule:
    """An integer within limits."""
    return Rule(
        f"an integer from {minimum} to {maximum}", lambda value: type(value) is int and minimum <= value <= maximum
    )


def number(above: float, maximum: float) -> Rule:
    """A number within limits, the first of which is not allowed."""
    return Rule(
        f"a number above {above:g} and at most {maximum:g}",
        lambda value: isinstance(value, (int, float)) and type(value) is not bool and above < value <= maximum,
    )


def list_of(rule: Rule, minimum: int, maximum: int) -> Rule:
    """A list of values that a rule accepts."""
    return Rule(
        f"a list of {minimum} to {maximum} values, each {rule.allowed}",
        lambda value: isinstance(value, list) and minimum <= len(value) <= maximum and all(map(rule.accepts, value)),
    )


def either(*rules: Rule) -> Rule:
    """A value that one of some rules accepts."""
    return Rule(" or ".join(rule.allowed for rule in rules), lambda value: any(rule.accepts(value) for rule in rules))
