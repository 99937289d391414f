"""Tars written byte by byte, so that what each damage must give is known without any tar library."""

END = bytes(1024)


def header(name: str | bytes, size: int, kind: bytes = b"0", size_field: bytes | None = None) -> bytes:
    """Return a ustar header; its checksum is the sum of its bytes, with spaces in place of the checksum."""
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
    """Return two members of two blocks each, 2048 bytes in all."""
    return file(f"{key}.jpg", f"image {key}".encode()) + file(f"{key}.txt", f"caption {key}\n".encode())


def record(kind: bytes, attributes: dict[str, str]) -> bytes:
    """Return a PAX record of the next member (x) or all following ones (g): 'LENGTH NAME=VALUE' with its own length."""
    lines = b""
    for name, value in attributes.items():
        line = f" {name}={value}\n".encode()
        length = len(line) + 1
        while len(str(length)) + len(line) != length:
            length += 1
        lines += str(length).encode() + line
    return header("././@PaxHeader", len(lines), kind) + lines + bytes(-len(lines) % 512)


def forge(content: bytes, *fields: tuple[int, bytes]) -> bytes:
    """Return the content with other bytes at these places of its first header, and a right checksum."""
    block = bytearray(content[:512])
    for start, value in fields:
        block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content[512:]
