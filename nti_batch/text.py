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
