"""Version of the output files. A run or part of a newer version is refused, and so is one of the trial version 1."""

import nti_batch
from nti_batch.json_object import Json, JsonObject

FORMAT_VERSION = 2


def format_versions() -> dict[str, Json]:
    """What every output file says of its own format and of the package that wrote it."""
    return {"format_version": FORMAT_VERSION, "nti_batch": nti_batch.__version__}


def check_format_version(values: JsonObject) -> None:
    """Check that this package can read a file.

    Raises:
        ValueError: If the file has no format version, or a newer one.
    """
    found = values.integer("format_version", 2, 1 << 30)
    values.text("nti_batch")
    if found > FORMAT_VERSION:
        raise ValueError(
            f"{values.file} has the format version {found}, and this nti_batch reads versions up to {FORMAT_VERSION}: "
            "update nti_batch"
        )
