"""Exit codes of the commands."""

from nti_batch.terminal import print_error

DONE = 0
"""Every record is committed as done."""

ERROR = 1
"""Something else went wrong."""

WRONG_SETTINGS = 2
"""The user's settings are wrong; nothing was written."""

SOME_FAILED = 3
"""The job finished, and some records are committed as failed."""

STOPPED = 75
"""A signal stopped the job early; the same command resumes it."""


def usage_error(error: Exception) -> int:
    """Print in one line what is wrong with the settings, and return the exit code."""
    print_error(str(error))
    return WRONG_SETTINGS
