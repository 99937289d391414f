"""Lengths of time for people."""


def format_duration(seconds: float) -> str:
    """A length of time in the largest unit that it fills, such as '12 min' or '1.5 h'."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{round(seconds / 86400, 1):g} days"
