"""Exit codes of the commands."""

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
