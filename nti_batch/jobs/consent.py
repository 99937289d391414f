"""Consent to shell commands: the literal flag on the command line, and nothing else."""

from collections.abc import Sequence

from jsonargparse import Namespace

FLAG = "--data.allow_pipe"


def check_consent(argv: Sequence[str], parsed: Namespace) -> None:
    """Check that shards of the form 'pipe:COMMAND' are allowed by the command line, not by what it names.

    Args:
        argv: Arguments of the command.
        parsed: What they say, together with files and environment variables.

    Raises:
        ValueError: If a file, an environment variable or another spelling allows them.
    """
    if parsed.get("data.allow_pipe") and _last_value(argv).lower() != "true":
        raise ValueError(
            "data.allow_pipe is true without the flag: a configuration file or an environment variable is no consent "
            f"to shell commands; remove it there, and give {FLAG}=true on the command line if you consent"
        )


def _last_value(argv: Sequence[str]) -> str:
    """The value of the last literal flag; empty if there is none."""
    last = ""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == FLAG:
            last = value if equals else following
    return last
