"""A tar read strictly: tarfile takes a wrong header for the end of an archive, and some for an order to go back."""

import tarfile
from tarfile import EOFHeaderError  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

# a forged size sends tarfile back, for ever, or through 2**95 bytes that are not there
_LARGEST_MEMBER = 1 << 33


# a long name or a list of attributes, which tarfile reads into memory
_LARGEST_RECORD = 1 << 24


_ATTRIBUTES = (b"x", b"g", b"X")


_RECORDS = (b"L", b"K", *_ATTRIBUTES)


class Header(tarfile.TarInfo):
    """The header of a member, read strictly."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Self":
        """Read a block; GNU tar keeps times where others keep the first half of a long name."""
        member = super().frombuf(buf, encoding, errors)
        if buf[257:265] == b"ustar  \0":
            member.name = bytes(buf[:100]).split(b"\0")[0].decode(encoding, errors)
        return member

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "Self":
        """Raise where the base class gives tarfile a reason to stop in silence or not to stop at all."""
        try:
            member = super().fromtarfile(archive)
        except (EOFHeaderError, tarfile.ReadError):
            raise
        except Exception as error:
            raise tarfile.ReadError(f"byte {archive.offset} has neither header nor end marker ({error})") from error
        taken = archive.offset - member.offset_data
        is_plain = member.isreg() and not member.issparse()
        if not 0 <= taken <= _LARGEST_MEMBER or member.size < 0 or (is_plain and not 0 <= taken - member.size < 512):
            raise tarfile.ReadError(f"{member.name!r} has the impossible size of {member.size} bytes")
        return member

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _RECORDS and not 0 <= self.size <= _LARGEST_RECORD:
            raise tarfile.ReadError(f"byte {archive.offset} has a name or attributes of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # as above
        if self.type in _ATTRIBUTES and self.size and not (member.pax_headers or archive.pax_headers):
            raise tarfile.ReadError(f"byte {self.offset} announces attributes, and none follow")
        return member


class Archive(tarfile.TarFile):
    """A tar that is read once, and keeps nothing of what it read."""

    tarinfo = Header
    members: list[tarfile.TarInfo]

    def next(self) -> tarfile.TarInfo | None:
        """The next member, or None at the end marker."""
        member = super().next()
        self.members.clear()
        return member

    def check_end(self) -> None:
        """Raise if this is no end: a zeroed header looks like the end marker to tarfile, which looks no further."""
        zeros = 0
        while chunk := self.fileobj.read(1 << 20):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError(f"data follows the end marker at byte {self.offset}")
            zeros += len(chunk)
        if zeros < tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"the end marker at byte {self.offset} is cut")
