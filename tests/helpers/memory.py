"""Memory that decoding an image adds to a process."""

from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from helpers.forks import FORKS
from nti_batch.data.images import decode_image


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _decode(data: bytes, size: int, connection: Connection) -> None:
    """Send the peak of resident memory over that before, in MiB, and the error."""
    decode_image(b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;", size, size)
    Path("/proc/self/clear_refs").write_text("5")
    before, error = _kilobytes("VmRSS"), ""
    try:
        decode_image(data, size, size)
    except ValueError as caught:
        error = str(caught)
    connection.send(((_kilobytes("VmHWM") - before) / 1024, error))


def decode_apart(data: bytes, size: int) -> tuple[float, str]:
    """Decode an image in its own process; return the MiB that this adds, and the error."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux can reset the peak of a process")
    receiver, sender = FORKS.Pipe(duplex=False)
    child = FORKS.Process(target=_decode, args=(data, size, sender))
    child.start()
    sender.close()
    added: float
    error: str
    added, error = receiver.recv()
    child.join()
    return added, error
