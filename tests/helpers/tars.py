"""Tar archives byte by byte, so that what must come out of each damage is known without any tar library."""

END = bytes(1024)


def header(name: str | bytes, size: int, kind: bytes = b"0", size_field: bytes | None = None) -> bytes:
    """One ustar header; its checksum is the byte sum with spaces in the checksum's own place."""
    raw = name.encode() if isinstance(name, str) else name
    field = size_field or b"%011o\0" % size
    head = raw.ljust(100, b"\0") + b"0000644\0" * 3 + field + b"0" * 11 + b"\0"
    tail = kind + bytes(100) + b"ustar\x0000" + bytes(247)
    block = head + b" " * 8 + tail
    assert len(block) == 512
    return head + b"%06o\0 " % sum(block) + tail


def file(name: str | bytes, data: bytes) -> bytes:
    return header(name, len(data)) + data + bytes(-len(data) % 512)


def sample(key: str) -> bytes:
    """Two members, four blocks: 2048 bytes."""
    return file(f"{key}.jpg", f"image {key}".encode()) + file(f"{key}.txt", f"caption {key}\n".encode())


def record(kind: bytes, attributes: dict[str, str]) -> bytes:
    """A PAX record, of the next member (x) or of all that follow (g): 'LENGTH NAME=VALUE', LENGTH counting itself."""
    lines = b""
    for name, value in attributes.items():
        line = f" {name}={value}\n".encode()
        length = len(line) + 1
        while len(str(length)) + len(line) != length:
            length += 1
        lines += str(length).encode() + line
    return header("././@PaxHeader", len(lines), kind) + lines + bytes(-len(lines) % 512)


def forge(content: bytes, *fields: tuple[int, bytes]) -> bytes:
    """The content with other bytes at these places of its first header, whose checksum is mended."""
    block = bytearray(content[:512])
    for start, value in fields:
        block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content[512:]
