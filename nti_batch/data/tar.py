"""Tars: a strict reader, places of members for random access, and an atomic writer of WebDataset shards.

tarfile takes a wrong header for the end of an archive and then stops in silence, and a forged size can send it back.
The reader here raises in both cases.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tarfile import EOFHeaderError  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import TYPE_CHECKING, Any

from webdataset.writer import TarWriter

from nti_batch.data.answer import RefusedError
from nti_batch.files import atomic_open

if TYPE_CHECKING:
    from typing import Self

# a forged size makes tarfile loop without end, or read through 2**95 bytes that are not there
_MAX_MEMBER_BYTES = 1 << 33


# tarfile reads a long name or a list of attributes into memory, and keeps the attributes of all members
_MAX_RECORD_BYTES = 1 << 20


# writers fill the last block, whose size GNU tar's --blocking-factor sets, with zeros
_MAX_END_BYTES = 1 << 24


# xz -9, the largest level, needs 65 MiB
_MAX_XZ_BYTES = 1 << 28


_XZ_CHUNK = 1 << 16


_ATTRIBUTES = (b"x", b"g", b"X")


_RECORDS = (b"L", b"K", *_ATTRIBUTES)


class Header(tarfile.TarInfo):
    """The header of a member, read strictly."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Self":
        """Parse a block; GNU tar keeps times where others keep the first half of a long name."""
        member = super().frombuf(buf, encoding, errors)
        if buf[257:265] == b"ustar  \0":
            member.name = bytes(buf[:100]).split(b"\0")[0].decode(encoding, errors)
        return member

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "Self":
        """Read the next header.

        Raises:
            ReadError: If tarfile would stop in silence here, or would not stop at all.
        """
        try:
            member = super().fromtarfile(archive)
        except (EOFHeaderError, tarfile.ReadError, RefusedError):
            raise
        except Exception as error:
            raise tarfile.ReadError(f"byte {archive.offset} has neither header nor end marker ({error})") from error
        stored = archive.offset - member.offset_data
        is_plain = member.isreg() and not member.issparse()
        if (
            not 0 <= stored <= _MAX_MEMBER_BYTES
            or member.size < 0
            or (is_plain and not 0 <= stored - member.size < tarfile.BLOCKSIZE)
        ):
            raise tarfile.ReadError(f"{member.name!r} has the impossible size of {member.size} bytes")
        return member

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _RECORDS and not 0 <= self.size <= _MAX_RECORD_BYTES:
            raise tarfile.ReadError(f"byte {archive.offset} has a name or attributes of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # as above
        if self.type in _ATTRIBUTES and self.size and not (member.pax_headers or archive.pax_headers):
            raise tarfile.ReadError(f"byte {self.offset} announces attributes, and none follow")
        if sum(map(len, archive.pax_headers.values())) > _MAX_RECORD_BYTES:
            raise tarfile.ReadError(f"byte {self.offset} adds attributes of all members to more than 1 MiB")
        return member

    # a sparse file is never read, and its map of any length need not be

    def _proc_sparse(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        is_extended: bool = self._sparse_structs[1]  # type: ignore[attr-defined]  # as above
        while is_extended:
            block = archive.fileobj.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of data")
            is_extended = bool(block[504])
        self.sparse = b""
        self.offset_data = archive.fileobj.tell()
        archive.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        return self

    def _proc_gnusparse_00(self, member: tarfile.TarInfo, *_: object) -> None:
        member.sparse = b""

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


class Archive(tarfile.TarFile):
    """A tar that is read once from its beginning; it keeps no list of the members that it has read."""

    tarinfo = Header
    members: list[tarfile.TarInfo]

    def next(self) -> tarfile.TarInfo | None:
        """Return the next member, or None at the end marker."""
        member = super().next()
        self.members.clear()
        return member

    def check_end(self) -> None:
        """Check that the archive ends here; tarfile takes a zeroed header for the end marker.

        Raises:
            ReadError: If data follows the end marker, or the end marker is cut or has no end.
        """
        zeros = 0
        while chunk := self.fileobj.read(1 << 16):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError(f"data follows the end marker at byte {self.offset}")
            zeros += len(chunk)
            if zeros > _MAX_END_BYTES:
                raise tarfile.ReadError(f"more than {_MAX_END_BYTES} zeros follow the last member")
        if zeros < tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"the end marker at byte {self.offset} is cut")


class _Xz:
    """Reads xz in bounded memory, which `lzma.LZMAFile` does not: a header may ask for 4 GiB."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._decompressor: lzma.LZMADecompressor | None = None

    def read(self, size: int) -> bytes:
        """Read at least one byte, unless this is the end."""
        while True:
            if self._decompressor is None or self._decompressor.eof:
                # xz pads a stream with zeros
                unused = b"" if self._decompressor is None else self._decompressor.unused_data.lstrip(b"\0")
                if not (unused := unused or self._stream.read(_XZ_CHUNK).lstrip(b"\0")):
                    return b""
                self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_XZ_BYTES)
                data = self._decompressor.decompress(unused, size)
            else:
                chunk = self._stream.read(_XZ_CHUNK) if self._decompressor.needs_input else b""
                if self._decompressor.needs_input and not chunk:
                    raise EOFError("the compressed data is cut")
                data = self._decompressor.decompress(chunk, size)
            if data:
                return data


class _Stoppable:
    """Looks at the stop flag before each read: a small compressed file may hold any number of bytes."""

    def __init__(self, file: Any, stopped: Callable[[], bool]) -> None:
        self._file, self._stopped = file, stopped

    def read(self, size: int) -> bytes:
        """Read the next bytes.

        Raises:
            OSError: If the job is to stop.
        """
        if self._stopped():
            raise OSError("the job is to stop")
        content: bytes = self._file.read(size)
        return content


def open_archive(stream: io.BufferedReader, stopped: Callable[[], bool] = lambda: False) -> Archive:
    """Open a tar, which may be compressed with gzip, bzip2 or xz; `fileobj` of a plain one is the stream itself.

    Args:
        stream: The file.
        stopped: Called before each read of compressed data; if it returns True, the read raises an OSError.
    """
    magic = stream.peek(10)
    file: Any = None
    if magic.startswith(b"\x1f\x8b"):
        file = gzip.GzipFile(fileobj=stream)
    elif magic.startswith(b"BZh") and magic[4:10] == b"1AY&SY":
        file = bz2.BZ2File(stream)
    elif magic.startswith(b"\xfd7zXZ"):
        file = _Xz(stream)
    can_skip = file is None and stream.seekable()
    file = stream if file is None else _Stoppable(file, stopped)
    return Archive.open(fileobj=file, mode="r:" if can_skip else "r|", encoding="utf-8", errors="backslashreplace")


@dataclass(frozen=True, slots=True)
class MemberPlace:
    """Place of a member's content in a plain tar."""

    offset: int
    """Bytes before the content."""

    size: int
    """Bytes of the content."""

    sha256: str = ""
    """Checksum that the content must have; empty if none is known."""

    def read(self, tar: Path) -> bytes:
        """Read the content.

        Raises:
            ValueError: If the tar cannot be read, or the content has another checksum; the text names the tar.
        """
        try:
            with open(tar, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise ValueError(f"{tar} is damaged: {error}") from error
        if self.sha256 and hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError(f"{tar} is damaged: bytes {self.offset} to {self.offset + self.size} have changed")
        return content


def locate_members(tar: Path) -> dict[str, MemberPlace]:
    """Read the headers of a plain tar, and return the place of each member by its name.

    Raises:
        ValueError: If a header is damaged; the text names the tar.
    """
    try:
        with tarfile.open(tar, "r:", tarinfo=Header) as archive:
            return {member.name: MemberPlace(member.offset_data, member.size) for member in archive}
    except (tarfile.TarError, OSError, ValueError) as error:
        raise ValueError(f"{tar} is damaged: {error}") from error


def write_samples(tar: Path, samples: Iterable[Mapping[str, str | bytes]]) -> None:
    """Write a WebDataset shard that appears whole or not at all; its bytes depend on the samples alone.

    A shard without samples is not written, because a reader takes an empty tar for a damaged one.

    Args:
        tar: Path of the shard.
        samples: `__key__`, and the content of each member by its extension.

    Raises:
        OSError: If the shard cannot be written.
    """
    remaining = iter(samples)
    if (first := next(remaining, None)) is None:
        return
    with atomic_open(tar) as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for sample in chain([first], remaining):
            writer.write(sample)
