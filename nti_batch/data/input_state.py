"""The state of a shard's files, by which a job sees without reading them that they have changed."""

import hashlib
import os
from collections.abc import Sequence

from nti_batch.data.folder import list_folder
from nti_batch.data.transfer import is_url
from nti_batch.records import WorkUnit


def input_states(units: Sequence[WorkUnit]) -> dict[WorkUnit, str]:
    """Hash the names, sizes and times of the files that each work unit reads.

    Args:
        units: Work units of one shard.

    Returns:
        The state of each unit; empty for a remote shard, whose content is known by its name alone.
    """
    url = units[0].url
    if is_url(url):
        return dict.fromkeys(units, "")
    if not os.path.isdir(url):
        return dict.fromkeys(units, _digest([_file_state(url)]))
    states: dict[int, list[str]] = {unit.index: [] for unit in units}
    samples, unread = list_folder(url)
    whole = [f"{path} {reason}" for path, reason in unread]
    for sample in samples:
        index = WorkUnit.index_of(sample.key, units[0].count)
        if index in states:
            states[index] += [f"{path} {_file_state(os.path.join(url, path))}" for path in sample.files]
    return {unit: _digest([*whole, *states[unit.index]]) for unit in units}


def _file_state(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return str(error.strerror)
    return f"{status.st_size} {status.st_mtime_ns}"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]
