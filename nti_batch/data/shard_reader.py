"""Reads a tar or a folder of images strictly, and reports what is damaged."""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from webdataset.tariterators import base_plus_ext

from nti_batch.data.folder import IMAGE_EXTENSIONS, extension_of, join_extensions, list_folder, read_file
from nti_batch.data.tar import Archive
from nti_batch.data.transfer import Source, is_url

_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a broken transfer is tried again."""


_NO_USERS_FILES = re.compile(r"__[^/]*__($|/)|(.*/)?(__MACOSX/|(\._[^/]*|\.DS_Store)$)", re.DOTALL)
"""WebDataset's `__meta__`, and what macOS packs beside each file."""


def count_images(url: str) -> int:
    """How many ids `read_unit` has over all units. Of a local tar the headers are read, the data is not."""
    keys, _ = read_keys(url)
    return len(keys)


def read_keys(url: str) -> tuple[list[str], list[str]]:
    """The keys of the ids that `read_unit` has over all units, and what is wrong with the shard."""
    faults: list[str] = []
    return [sample.key for sample in _samples(url, lambda ordinal, key: False, {}, faults)], faults


def locate_images(path: str) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of the image of each key in a local tar, up to its end or damage, by the headers.

    Raises:
        ValueError: If the shard is not a local file, or compressed: then no byte has a place to go to.
    """
    places: dict[str, tuple[int, int]] = {}
    if is_url(path):
        raise ValueError(f"shard {path!r} is remote, and images are read in any order: fetch it, and give shards=...")
    try:
        with open(path, "rb") as stream:
            archive = _open_archive(stream)
            if archive.fileobj is not stream:
                raise ValueError(
                    f"shard {path!r} is compressed, and images are read in any order: unpack it, and give shards=..."
                )
            for key, members in groupby(_named_members(archive, []), itemgetter(0)):
                images = [member for _, extension, member in members if extension in IMAGE_EXTENSIONS]
                if len(images) == 1:
                    places.setdefault(key, (images[0].offset_data, images[0].size))
    except OSError as error:
        raise ValueError(
            f"shard {path!r} cannot be read ({error.strerror}): give shards=... where it is now"
        ) from error
    except _DAMAGE:
        # what stands before the damage is whole; who asks for more is told
        pass
    return places


@dataclass(slots=True)
class _Sample:
    """Adjacent members of one key."""

    key: str
    wanted: bool
    members: dict[str, bytes | None] = field(default_factory=dict)
    """By extension; None where the data was not needed or could not be read."""

    fault: str = ""
    damage: BaseException | None = None
    """What ended the shard in this sample or right behind it, so that members may be missing."""

    def whole(self, extension: str) -> bytes:
        if extension not in self.members:
            raise ValueError(f"there is no .{extension} member beside {join_extensions(self.members)}")
        data = self.members[extension]
        if data is None:
            raise ValueError(f"the .{extension} member is cut")
        return data


@dataclass(slots=True)
class _Reading:
    """How one reading of a shard, from its beginning, went."""

    faults: list[str] = field(default_factory=list)
    is_broken: bool = False
    """Whether the transfer broke, so that another reading may go further."""


def _samples(
    url: str,
    is_wanted: Callable[[int, str], bool],
    needed: Mapping[str, int],
    faults: list[str],
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[_Sample]:
    """Each id of the shard once, in order, with the `needed` members if it is wanted. Fills `faults`.

    A broken transfer begins anew; where it broke, nothing is told before the last try. `needed` holds extensions, and
    how many bytes of each are read: a small shard may unpack to more than memory.
    """
    told: set[str] = set()
    for pause in (*RETRY_DELAYS, None):
        reading, last = _Reading(), None
        for sample in _read(url, lambda n, key: key not in told and is_wanted(n, key), needed, reading, stopped):
            if sample.damage is None and sample.key not in told:
                told.add(sample.key)
                yield sample
            last = sample
        if stopped():
            return
        if pause is None or not reading.is_broken:
            break
        _wait(pause, stopped)
    if last is not None and last.key not in told:
        yield last
    tries = f" (tried {len(RETRY_DELAYS) + 1} times)" if reading.is_broken else ""
    faults += [fault + tries for fault in reading.faults]


def _wait(seconds: float, stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not stopped() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.5))


def _read(
    url: str,
    is_wanted: Callable[[int, str], bool],
    needed: Mapping[str, int],
    reading: _Reading,
    stopped: Callable[[], bool],
) -> Iterator[_Sample]:
    """The ids of the shard, until the end or the first damage; only the last one can be damaged."""
    if os.path.isdir(url):
        yield from _read_folder(url, is_wanted, needed, reading.faults)
        return
    seen: set[str] = set()
    source: Source | None = None
    faults = reading.faults
    try:
        source = Source(url, stopped)
        archive = _open_archive(source.stream)
        for ordinal, (key, members) in enumerate(groupby(_named_members(archive, faults), itemgetter(0))):
            is_first = key not in seen
            seen.add(key)
            sample = _Sample(key, is_wanted(ordinal, key))
            _fill(sample, archive, members, needed)
            if is_first:
                yield sample
            else:
                faults.append(f"members of key {key!r} come again further on; only the first were taken")
            if sample.damage is not None:
                raise sample.damage
    except _DAMAGE as damage:
        faults.insert(0, f"{damage}, after {len(seen)} keys")
    finally:
        if source is not None and (failure := source.close()):
            faults.insert(0, failure)
            reading.is_broken = not source.was_refused
    if not seen and not faults:
        faults.append("the shard holds no samples")


def _fill(sample: _Sample, archive: tarfile.TarFile, members: Iterable[Any], needed: Mapping[str, int]) -> None:
    try:
        for _, extension, member in members:
            if extension in sample.members:
                sample.fault = f"two members are called {member.name!r}, small and capital letters alike"
            elif not member.isreg() or member.issparse():
                sample.fault = f"{member.name!r} is no regular file; pack with 'tar --dereference --hard-dereference'"
            elif member.size > needed.get(extension, member.size):
                sample.fault = f"{member.name!r} has {member.size} bytes, and at most {needed[extension]} are read"
            sample.members[extension] = None
            if sample.wanted and not sample.fault and extension in needed:
                data = archive.extractfile(member)
                assert data is not None
                sample.members[extension] = data.read()
    except _DAMAGE as damage:
        sample.damage = damage


def _read_folder(
    folder: str, is_wanted: Callable[[int, str], bool], needed: Mapping[str, int], faults: list[str]
) -> Iterator[_Sample]:
    """The ids of a folder."""
    samples, unread = list_folder(folder)
    for ordinal, found in enumerate(samples):
        sample = _Sample(found.key, is_wanted(ordinal, found.key))
        for path in found.files:
            extension = extension_of(path)
            if extension in sample.members:
                sample.fault = f"two files are called {path!r}, small and capital letters alike"
            sample.members[extension] = None
            if sample.wanted and not sample.fault and extension in needed:
                try:
                    sample.members[extension] = read_file(os.path.join(folder, path), needed[extension])
                except ValueError as error:
                    sample.fault = f"{path!r}: {error}"
        yield sample
    faults += [f"{path!r} {reason}" for path, reason in unread]
    if not samples and not unread:
        faults.append("the folder holds no images")


def _named_members(archive: Archive, faults: list[str]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key, extension, member) of all that is no folder, no label of the tar and one of the user's own files."""
    while (member := archive.next()) is not None:
        if member.isdir() or member.type in (b"D", b"V") or _NO_USERS_FILES.match(member.name):
            continue
        key, extension = base_plus_ext(member.name)
        if key is None or key.endswith("/"):
            faults.append(f"{member.name!r} belongs to no sample: its name is not KEY.EXTENSION")
        else:
            yield key, extension.lower(), member
    archive.check_end()


def _open_archive(stream: io.BufferedReader) -> Archive:
    magic = stream.peek(10)
    file: Any = stream
    if magic.startswith(b"\x1f\x8b"):
        file = gzip.GzipFile(fileobj=stream)
    elif magic.startswith(b"BZh") and magic[4:10] == b"1AY&SY":
        file = bz2.BZ2File(stream)
    elif magic.startswith(b"\xfd7zXZ"):
        file = lzma.LZMAFile(stream)  # noqa: SIM115  # its source is closed
    can_skip = file is stream and stream.seekable()
    return Archive.open(fileobj=file, mode="r:" if can_skip else "r|", encoding="utf-8", errors="backslashreplace")
