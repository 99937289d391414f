"""The state of a shard's files, by which a job sees without reading them that they have changed."""

import hashlib
import os
from collections.abc import Sequence

from nti_batch.data.folder import list_folder
from nti_batch.data.shards import is_url
from nti_batch.records import WorkUnit


def input_states(url: str, units: int, caption: str = "txt") -> list[str]:
    """Hash the names, sizes and times of the files that each work unit of a shard reads.

    Args:
        url: Address of the shard.
        units: Number of its work units.
        caption: Extension of the captions, 'txt' or 'json'.

    Returns:
        The state of each unit; empty for a remote shard, whose content is known by its name alone.
    """
    if is_url(url):
        return [""] * units
    if not os.path.isdir(url):
        return [_digest([_file_state(url)])] * units
    listing = list_folder(url, caption)
    lines = [[f"{path} {reason}" for path, reason in listing.unread] for _ in range(units)]
    for sample in listing.samples:
        files = lines[WorkUnit.index_of(sample.key, units)]
        files += [f"{path} {_file_state(os.path.join(url, path))}" for path in sample.files]
    return [_digest(of_unit) for of_unit in lines]


def _file_state(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return str(error.strerror)
    return f"{status.st_size} {status.st_mtime_ns}"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]
