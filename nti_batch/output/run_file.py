"""The file `run.json` of an output folder, as it is read."""

import json

from nti_batch.json_object import Json, JsonObject
from nti_batch.output.format_version import check_format_version, format_versions
from nti_batch.output.run_files import RUN_FILE as RUN_FILE
from nti_batch.output.run_files import RunFiles, shown_errors
from nti_batch.settings import flatten

MAX_RUN_BYTES = 1 << 26
"""Largest `run.json` that is read: the addresses of more than half a million shards."""


def read_run_file(files: RunFiles, command: str = "invert") -> JsonObject:
    """Content of `run.json`, checked for its version.

    Args:
        files: Files of the run.
        command: Command whose run is expected, for the error message.

    Raises:
        ValueError: If the folder has no `run.json`, or it is damaged or of a newer version.
    """
    try:
        with shown_errors(files.shown):
            content = JsonObject.read(files.path(RUN_FILE), MAX_RUN_BYTES)
            check_format_version(content)
            return content
    except FileNotFoundError as error:
        raise ValueError(
            f"{files.address!r} is no run of `nti-batch {command}`: it has no {RUN_FILE!r}; give the --output.dir of "
            "one"
        ) from error


def refuse_other_settings(address: str, known: dict[str, Json], asked: dict[str, Json]) -> None:
    """Compare the settings that a run has with those that a job asks for.

    Raises:
        ValueError: If they differ; the text names each flag.
    """
    there, now = flatten(known), flatten(asked)
    differences = [
        f"{flag}: {_value(there, flag)} there, {_value(now, flag)} now"
        for flag in there | now
        if there.get(flag) != now.get(flag)
    ]
    if differences:
        raise ValueError(
            f"{address!r} holds a run with other settings ({'; '.join(differences)}): "
            "ask for the same settings, or give another --output.dir"
        )


def _value(settings: dict[str, Json], flag: str) -> str:
    """The value of a flag; a setting that came later is left out where it has its default."""
    return json.dumps(settings[flag]) if flag in settings else "the default"


def read_shards(files: RunFiles, content: JsonObject) -> dict[str, str]:
    """Addresses of the shards of a run by name: those in its `run.json`, then those that were added to it.

    Raises:
        ValueError: If an entry is damaged.
    """
    shards = content.section("shards").all_texts()
    for entry in files.added_shards():
        shards |= JsonObject.read(entry, MAX_RUN_BYTES).section("shards").all_texts()
    return shards


def run_text(address: str, command: str, settings: dict[str, Json], shards: dict[str, str]) -> str:
    """Content of `run.json`.

    Raises:
        ValueError: If it is larger than a reader allows.
    """
    addresses: dict[str, Json] = dict(shards)
    content = {**format_versions(), "command": command, "settings": settings, "shards": addresses}
    text = json.dumps(content, indent=2) + "\n"
    if len(text) > MAX_RUN_BYTES:
        raise ValueError(
            f"{address}/{RUN_FILE} would have {len(text):,} bytes for {len(shards):,} shards, allowed: "
            f"{MAX_RUN_BYTES:,}: give each of several output folders a part of the shards"
        )
    return text
