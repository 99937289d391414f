"""Reads the samples of a shard, which is a tar or a folder of images, and reports all damage.

WebDataset's rule splits the name of a member into key and extension. A tar is read strictly: WebDataset itself ends
in silence at a wrong header.
"""

import lzma
import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from webdataset.tariterators import base_plus_ext

from nti_batch.data.folder import FolderSample, extension_of, join_extensions, list_folder, read_file
from nti_batch.data.tar import Archive, open_archive
from nti_batch.data.transfer import Source
from nti_batch.phrases import hide_credentials

DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new attempt to read the output of a command that failed."""


_NOT_OF_A_SAMPLE = re.compile(r"__[^/]*__($|/)|(.*/)?(__MACOSX/|(\._[^/]*|\.DS_Store)$)", re.DOTALL)
"""Names of WebDataset's `__meta__` members, and of the files that macOS adds beside each file."""


_NamedMember = tuple[str, str, tarfile.TarInfo]
"""Key, extension in lower case, header."""


def read_keys(
    url: str, caption: str = "txt", stopped: Callable[[], bool] = lambda: False, allow_pipe: bool = False
) -> tuple[list[str], list[str]]:
    """Read the keys of a shard, each once and in order, and the errors of the shard as a whole.

    Only the headers of a local tar are read.

    Args:
        url: Address of the shard.
        caption: Source of the prompts; a folder has other keys for 'txt' than for 'json:FIELD'.
        stopped: As for `ShardReader`.
        allow_pipe: As for `ShardReader`.

    Raises:
        ValueError: If the shard is a shell command, and `allow_pipe` is False.
    """
    reader = key_reader(url, caption, stopped, allow_pipe)
    return [sample.key for sample in reader], reader.errors


def key_reader(url: str, caption: str, stopped: Callable[[], bool], allow_pipe: bool) -> "ShardReader":
    """Return a reader that reads no contents; the arguments are those of `read_keys`."""
    return ShardReader(url, lambda key: False, {}, caption.partition(":")[0], stopped, allow_pipe)


@dataclass(frozen=True, slots=True)
class ShardSample:
    """Adjacent members of one key."""

    key: str
    is_wanted: bool
    members: Mapping[str, bytes | None]
    """Contents by extension; None where the content was not needed or could not be read."""

    error: str
    """Reason why the sample cannot be used; empty if all is well."""

    damage: BaseException | None = None
    """Error that ended the shard in this sample or right behind it, so that members may be missing."""

    def content(self, extension: str) -> bytes:
        """Return the content of a member.

        Raises:
            ValueError: If the member is missing or cut.
        """
        if extension not in self.members:
            raise ValueError(
                f"there is no .{extension} member beside {join_extensions(self.members)}: add one, or give the caption "
                "with --data.default_caption"
            )
        content = self.members[extension]
        if content is None:
            raise ValueError(f"the .{extension} member is cut")
        return content


class ShardReader:
    """Yields a sample for each key of a shard, in order; `errors` has the errors of the whole shard afterwards.

    A reader is iterated once. A command that fails starts again from the beginning. The sample in which it broke is
    withheld until the last attempt, since another attempt may read it whole.
    """

    errors: list[str]
    """Messages about the shard as a whole, for a person to read."""

    note: str
    """What else the shard holds, for a person to read; empty if nothing."""

    def __init__(
        self,
        url: str,
        is_wanted: Callable[[str], bool],
        size_limits: Mapping[str, int],
        caption: str,
        stopped: Callable[[], bool] = lambda: False,
        allow_pipe: bool = False,
    ) -> None:
        """Open nothing yet.

        Args:
            url: Address of the shard: a path, a url or a command.
            is_wanted: Decides by the key whether the contents of a sample are read.
            size_limits: Extensions of the members that are read, with the largest number of bytes of each. A small
                shard may unpack to more than memory.
            caption: Extension of the captions, 'txt' or 'json'.
            stopped: Called before each read; if it returns True, the iteration ends without errors.
            allow_pipe: Whether the url may be a shell command; if it is one and may not, the iteration raises a
                ValueError.
        """
        self.errors = []
        self.note = ""
        self._url, self._is_wanted, self._size_limits, self._stopped = url, is_wanted, size_limits, stopped
        self._caption, self._allow_pipe = caption, allow_pipe
        self._yielded: set[str] = set()

    def __iter__(self) -> Generator[ShardSample]:
        """Read the shard, in several attempts if its command fails."""
        for delay in (*RETRY_DELAYS, None):
            attempt, last = self._attempt(), None
            for sample in attempt:
                if sample.damage is None and sample.key not in self._yielded:
                    self._yielded.add(sample.key)
                    yield sample
                last = sample
            if self._stopped():
                return
            if delay is None or not attempt.is_broken:
                break
            _wait(delay, self._stopped)
        if last is not None and last.key not in self._yielded:
            yield last
        attempts = f" (tried {len(RETRY_DELAYS) + 1} times)" if attempt.is_broken else ""
        self.errors, self.note = [error + attempts for error in attempt.errors], attempt.note

    def _attempt(self) -> "_TarAttempt | _FolderAttempt":
        if os.path.isdir(self._url):
            return _FolderAttempt(self._url, self._is_missing, self._size_limits, self._caption)
        return _TarAttempt(self._url, self._is_missing, self._size_limits, self._stopped, self._allow_pipe)

    def _is_missing(self, key: str) -> bool:
        return key not in self._yielded and self._is_wanted(key)


def _wait(seconds: float, stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not stopped() and (remaining := end - time.monotonic()) > 0:
        time.sleep(min(remaining, 0.5))


class _TarAttempt:
    """Reads a tar once, until its end or its first damage; only the last sample can be damaged."""

    note = ""

    def __init__(
        self,
        url: str,
        is_wanted: Callable[[str], bool],
        size_limits: Mapping[str, int],
        stopped: Callable[[], bool],
        allow_pipe: bool,
    ) -> None:
        self.errors: list[str] = []
        self.is_broken = False
        """Whether the command failed, so that another attempt may get further."""

        self._url, self._is_wanted, self._size_limits, self._stopped = url, is_wanted, size_limits, stopped
        self._allow_pipe = allow_pipe
        self._keys: set[str] = set()

    def __iter__(self) -> Iterator[ShardSample]:
        source: Source | None = None
        try:
            source = Source(self._url, self._stopped, self._allow_pipe)
            yield from self._samples(open_archive(source.stream, self._stopped))
        except DAMAGE as damage:
            self.errors.insert(0, f"{hide_credentials(str(damage))}, after {len(self._keys)} keys")
        finally:
            if source is not None and (failure := source.close()):
                self.errors.insert(0, failure)
                self.is_broken = True
        if not self._keys and not self.errors:
            self.errors.append("the shard holds no samples")

    def _samples(self, archive: Archive) -> Iterator[ShardSample]:
        for key, members in groupby(self._named_members(archive), itemgetter(0)):
            is_first = key not in self._keys
            self._keys.add(key)
            sample = self._sample(archive, key, members, self._is_wanted(key))
            if is_first:
                yield sample
            else:
                self.errors.append(f"members of key {key!r} come again further on; only the first were taken")
            if sample.damage is not None:
                raise sample.damage

    def _named_members(self, archive: Archive) -> Iterator[_NamedMember]:
        for member in user_files(archive):
            if name := split_name(member.name):
                yield *name, member
            else:
                self.errors.append(f"{member.name!r} belongs to no sample: its name is not KEY.EXTENSION")

    def _sample(self, archive: Archive, key: str, members: Iterable[_NamedMember], is_wanted: bool) -> ShardSample:
        contents: dict[str, bytes | None] = {}
        error = ""
        try:
            for _, extension, member in members:
                error = self._member_error(extension, member, contents) or error
                contents[extension] = None
                if is_wanted and not error and extension in self._size_limits:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    contents[extension] = stream.read()
        except DAMAGE as damage:
            return ShardSample(key, is_wanted, contents, error, damage)
        return ShardSample(key, is_wanted, contents, error)

    def _member_error(self, extension: str, member: tarfile.TarInfo, earlier: Mapping[str, bytes | None]) -> str:
        if extension in earlier:
            return f"two members are called {member.name!r}, upper and lower case being equal"
        if not member.isreg() or member.issparse():
            return f"{member.name!r} is no regular file; pack with 'tar --dereference --hard-dereference'"
        if member.size > (limit := self._size_limits.get(extension, member.size)):
            return f"{member.name!r} has {member.size} bytes, and at most {limit} are read"
        return ""


class _FolderAttempt:
    """Reads a folder of images; its transfer cannot break."""

    is_broken = False

    def __init__(
        self, folder: str, is_wanted: Callable[[str], bool], size_limits: Mapping[str, int], caption: str
    ) -> None:
        self.errors: list[str] = []
        self.note = ""
        self._folder, self._is_wanted, self._size_limits, self._caption = folder, is_wanted, size_limits, caption

    def __iter__(self) -> Iterator[ShardSample]:
        listing = list_folder(self._folder, self._caption)
        self.note = listing.describe_others()
        for sample in listing.samples:
            yield self._sample(sample, self._is_wanted(sample.key))
        self.errors += [f"{path!r} {reason}" for path, reason in listing.unread]
        if not listing.samples and not listing.unread:
            self.errors.append("the folder holds no images")

    def _sample(self, found: FolderSample, is_wanted: bool) -> ShardSample:
        contents: dict[str, bytes | None] = {}
        error = ""
        for path in found.files:
            extension = extension_of(path)
            if extension in contents:
                error = f"two files are called {path!r}, upper and lower case being equal"
            contents[extension] = None
            if is_wanted and not error and extension in self._size_limits:
                try:
                    contents[extension] = read_file(os.path.join(self._folder, path), self._size_limits[extension])
                except ValueError as reason:
                    error = f"{path!r}: {reason}"
        return ShardSample(found.key, is_wanted, contents, error)


def user_files(archive: Archive) -> Iterator[tarfile.TarInfo]:
    """Yield the members that are no folders, no labels of the tar and no files of WebDataset or macOS."""
    while (member := archive.next()) is not None:
        if not (member.isdir() or member.type in (b"D", b"V") or _NOT_OF_A_SAMPLE.match(member.name)):
            yield member
    archive.check_end()


def split_name(name: str) -> tuple[str, str] | None:
    """Split the name of a member into key and extension, the latter in lower case; None if it has another form."""
    key, extension = base_plus_ext(name)
    return None if key is None or key.endswith("/") else (key, extension.lower())
