"""Phrases that messages of several packages share."""

from collections.abc import Sequence


def and_more(items: Sequence[str], limit: int) -> str:
    """Join the first items, and say how many others there are.

    Args:
        items: Parts of a message.
        limit: The largest number of items to join.

    Returns:
        For example "first; second; and 3 more".
    """
    others = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return "; ".join([*items[:limit], *others])


def format_duration(seconds: float) -> str:
    """A length of time in the largest unit that it fills, such as '12 min' or '1.5 h'."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{round(seconds / 86400, 1):g} days"
