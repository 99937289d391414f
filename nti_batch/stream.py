"""Input shards -> work units -> samples. What is damaged gives a row that says so; nothing is skipped in silence.

A shard is a tar, or a folder of images, whose ids are paths without their endings, in order.

tarfile takes a wrong header for the end of an archive and WebDataset believes it, so a tar is walked strictly.
From WebDataset come the patterns, the addresses and the rule that splits a member's name into key and extension.
"""

import bz2
import glob
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from nti_batch.archive import Archive
from nti_batch.folder import (
    IMAGE_EXTENSIONS,
    LARGEST_CAPTION,
    LARGEST_IMAGE,
    extension_of,
    list_folder,
    read_file,
)
from nti_batch.records import Failure, WorkUnit
from nti_batch.transfer import Source, is_url

_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)
_FAULTS_TOLD = 5
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a broken transfer is tried again."""

_NO_USERS_FILES = re.compile(r"__[^/]*__($|/)|(.*/)?(__MACOSX/|(\._[^/]*|\.DS_Store)$)", re.DOTALL)
"""WebDataset's `__meta__`, and what macOS packs beside each file."""

_TAR_IN_COMMAND = re.compile(r"([^/\s='\"]+\.(?:tar(?:\.\w+)?|tgz))(?![\w.])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RawSample:
    """One captioned image as it lies in the shard, not yet decoded."""

    unit: WorkUnit
    key: str
    prompt: str
    image: bytes


def input_shards(shards: str | None, images: str | None, allow_pipe: bool = False) -> list[str]:
    """The address of each shard of an input that is given as shards or as a folder of images.

    Raises:
        ValueError: If both or none are given, or nothing is found.
    """
    if shards is not None and images is None:
        return expand_shards(shards, allow_pipe)
    if images is not None and shards is None:
        return [folder_shard(images)]
    raise ValueError(
        f"data.shards is {shards!r} and data.images is {images!r}: give one of them, tars with --data.shards or a "
        "folder of images with --data.images"
    )


def expand_shards(patterns: str, allow_pipe: bool = False) -> list[str]:
    """Paths, globs, braces, `::` lists, urls and files of these -> the address of each shard, once.

    Args:
        patterns: Several are joined by '::'; '@FILE' is a text file with one pattern a line.
        allow_pipe: Whether 'pipe:COMMAND' may be among them.

    Raises:
        ValueError: If nothing is found, or a pattern means nothing or is not allowed.
    """
    given = [line for pattern in _expand(patterns) for line in _lines(pattern)]
    shards = list(dict.fromkeys(shard for pattern in given for shard in _matches(pattern)))
    if not allow_pipe:
        refuse_pipes(shards)
    return shards


def folder_shard(folder: str) -> str:
    """The address of a folder of images, which is read as one shard.

    Raises:
        ValueError: If it is no folder.
    """
    if not os.path.isdir(folder):
        raise ValueError(
            f"images: {folder!r} is no folder, seen from {os.getcwd()!r}; give one with images and captions in it, "
            "or tars with --data.shards"
        )
    # '.' has no name, and results are called by it
    return os.path.abspath(folder)


def refuse_pipes(urls: Iterable[str]) -> None:
    """Raise a ValueError if one of the addresses would run a shell."""
    for url in urls:
        if url.startswith("pipe:"):
            raise ValueError(
                f"shard {url!r} runs a command in a shell: add --data.allow_pipe=true if you trust where it comes from"
            )


def _expand(patterns: str) -> list[str]:
    try:
        expanded: list[str] = expand_urls(patterns)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"shards {patterns!r} cannot be expanded: {error}; check its braces and variables") from error
    return expanded


def _lines(pattern: str) -> list[str]:
    """What a pattern stands for: itself, or those in the file that it names."""
    if not pattern.startswith("@"):
        return [pattern]
    try:
        lines = Path(pattern[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"shards {pattern!r}: the list cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise ValueError(f"shards {pattern!r}: the list is empty; give one path, glob or url a line")
    return [expanded for line in found for expanded in _expand(line)]


def _matches(pattern: str) -> list[str]:
    if is_url(pattern):
        return [pattern]
    if "://" in pattern:
        raise ValueError(f"shard {pattern!r} has an unknown scheme; use 'pipe:COMMAND', which writes it to its stdout")
    # a name may hold brackets itself
    found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
    files = [path for path in found if not os.path.isdir(path)]
    if not files:
        raise ValueError(
            f"shards: no file matches {pattern!r}, seen from {os.getcwd()!r}; "
            "give tars as paths, 'folder/*.tar', '{000..009}.tar', urls or several of them joined by '::', "
            "or a folder of images with --data.images"
        )
    return files


def shard_name(url: str) -> str:
    """File name without '.tar', '.tar.gz' or '.tgz': it names the shard's rows and output files."""
    is_command = url.startswith("pipe:")
    tars = _TAR_IN_COMMAND.findall(url) if is_command else []
    address = re.split("[?#]", url)[0] if is_url(url) and not is_command else url
    file_name = tars[-1] if tars else os.path.basename(address)
    name = re.sub(r"\.(tar(\.(gz|bz2|xz))?|tgz)$", "", file_name, flags=re.IGNORECASE)
    if not name:
        raise ValueError(f"shard {url!r} has no file name to call its results by; name a file, as in '.../00000.tar'")
    return name


def work_units(urls: list[str], slices: int) -> list[WorkUnit]:
    """Every slice of every shard, one shard after the other."""
    if slices < 1:
        raise ValueError(f"slices is {slices}, but a shard has at least 1; set 1 to read each shard as a whole")
    url_of: dict[str, str] = {}
    for url in urls:
        name = shard_name(url)
        if name in url_of:
            raise ValueError(
                f"shards {url_of[name]!r} and {url!r} are both called {name!r}, so their results would mix; "
                "rename one, or run them into different output folders"
            )
        url_of[name] = url
    return [WorkUnit(name, url, index, slices) for name, url in url_of.items() for index in range(slices)]


def caption_source(caption: str) -> tuple[str, str]:
    """Split the setting 'txt' or 'json:FIELD' into the member's extension and the field, empty for a text."""
    extension, _, json_field = caption.partition(":")
    if caption == "txt" or (extension == "json" and json_field):
        return extension, json_field
    raise ValueError(f"caption is {caption!r}; allowed are 'txt' and 'json:FIELD', for example 'json:caption'")


def read_unit(
    unit: WorkUnit, caption: str, skip: Container[str], stopped: Callable[[], bool] = lambda: False
) -> Iterator[RawSample | Failure]:
    """A row for each id of this unit that is not in `skip`, in the order of the tar.

    Samples are dealt to the units by ordinal. What is wrong with the shard as a whole is told in a last row with an
    empty key, by each unit: of a transfer that broke for one, the others know nothing.

    Args:
        unit: What to read.
        caption: Where prompts are: 'txt' or 'json:FIELD'.
        skip: Keys to leave out; the empty one stands for the shard as a whole.
        stopped: Asked while a transfer is waited for; when it says so, reading ends without another row.
    """
    extension, json_field = caption_source(caption)
    faults: list[str] = []

    def is_wanted(ordinal: int, key: str) -> bool:
        return ordinal % unit.count == unit.index and key not in skip

    needed = {**dict.fromkeys(IMAGE_EXTENSIONS, LARGEST_IMAGE), extension: LARGEST_CAPTION}
    for sample in _samples(unit.url, is_wanted, needed, faults, stopped):
        if sample.wanted:
            yield _row(unit, sample, extension, json_field)
    if faults and "" not in skip:
        more = [f"and {len(faults) - _FAULTS_TOLD} more"] if len(faults) > _FAULTS_TOLD else []
        yield Failure(unit, "", "shard", "; ".join(faults[:_FAULTS_TOLD] + more))


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
            raise ValueError(f"there is no .{extension} member beside {_listed(self.members)}")
        data = self.members[extension]
        if data is None:
            raise ValueError(f"the .{extension} member is cut")
        return data


def _row(unit: WorkUnit, sample: _Sample, extension: str, json_field: str) -> RawSample | Failure:
    stage = "shard"
    try:
        if sample.fault:
            raise ValueError(sample.fault)
        stage = "image"
        image = _image(sample)
        stage = "caption"
        prompt = read_caption(sample.whole(extension), json_field)
    except (ValueError, RecursionError) as error:
        if sample.damage is None:
            return Failure(unit, sample.key, stage, str(error))
        return Failure(unit, sample.key, "shard", f"{error}: the shard is damaged here ({sample.damage})")
    return RawSample(unit, sample.key, prompt, image)


def _image(sample: _Sample) -> bytes:
    images = [extension for extension in sample.members if extension in IMAGE_EXTENSIONS]
    if len(images) != 1:
        raise ValueError(
            f"there are {len(images)} image members among {_listed(sample.members)}, not one; images end in "
            f"{_listed(IMAGE_EXTENSIONS)}, and in a tar a key ends at the first dot of the file name"
        )
    return sample.whole(images[0])


def read_caption(data: bytes, json_field: str = "") -> str:
    """A caption without the white space around it, from a text or from a field of a JSON.

    Raises:
        ValueError: If there is none, or it is no text.
        RecursionError: Of a JSON that is nested too deeply.
    """
    text = data.decode("utf-8-sig")
    if json_field:
        record = json.loads(text)
        value = record.get(json_field) if isinstance(record, dict) else None
        if not isinstance(value, str):
            raise ValueError(f"the .json member has no field {json_field!r} that is a string")
        text = value
    # json can spell half a surrogate pair, which no output file could hold
    text.encode()
    if not text.strip():
        raise ValueError("the caption is empty")
    return text.strip()


def _listed(extensions: Iterable[str]) -> str:
    return ", ".join(f".{extension}" for extension in extensions)


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
    for pause in (*PAUSES, None):
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
    tries = f" (tried {len(PAUSES) + 1} times)" if reading.is_broken else ""
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
