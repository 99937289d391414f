"""Compares reading shards from a server with WebDataset's curl: `python -m nti_batch.benchmarks.transfers`.

A server on loopback gives the same tar under many names. It gives each whole, cuts each twice, or falls silent in each
once and hangs up half a minute later. Each reader is a process of its own, on Linux; curl's
memory is not counted.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import webdataset

from nti_batch.data import transfer
from nti_batch.data.shard_reader import ShardReader

IMAGE_BYTES = 1 << 18
IMAGES = 256
SILENCE = 30.0
"""Seconds from the last byte of a silent server to its hanging up."""

STALL_LIMIT = 2.0
"""Takes the place of the job's two minutes, as half a minute does for a server's hours."""

FAULTS = {"no fault": 0, "two cuts a shard": 2, "a stall a shard": 1}
"""Number of connections of each shard that break after a third of it."""


def main() -> None:
    """Measure both readers with each fault, and print a row of a table for each."""
    parser = argparse.ArgumentParser(description="Compare reading shards from a server with WebDataset's curl.")
    parser.add_argument("--shards", type=int, default=12, help="number of shards, of 64 MiB each")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("urls", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        print(json.dumps(_measure(READERS[arguments.reader], arguments.urls)))
        return
    content = _tar()
    print("| server | reader | shards an hour | images read | MiB more at the peak |\n|---|---|---|---|---|")
    for fault in FAULTS:
        for reader in READERS:
            with _Server(content, fault) as server:
                threading.Thread(target=server.serve_forever, daemon=True).start()
                urls = [f"http://127.0.0.1:{server.server_port}/{i:03}.tar" for i in range(arguments.shards)]
                command = [sys.executable, "-m", "nti_batch.benchmarks.transfers", "--reader", reader, *urls]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                server.shutdown()
            read = f"{found['images']:,} of {IMAGES * arguments.shards:,}"
            rate = 3600 * arguments.shards / found["seconds"]
            print(f"| {fault} | {reader} | {rate:,.0f} | {read} | {found['memory']:.1f} |", flush=True)


def _measure(reader: Callable[[Sequence[str]], int], urls: Sequence[str]) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident memory is that from here on
    before, start = _resident("VmRSS"), time.monotonic()
    images = reader(urls)
    return {"images": images, "seconds": time.monotonic() - start, "memory": _resident("VmHWM") - before}


def _resident(field: str) -> float:
    """MiB of resident memory, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _read_here(urls: Sequence[str]) -> int:
    transfer.READ_TIMEOUT = STALL_LIMIT
    readers = (ShardReader(url, lambda key: True, {"jpg": IMAGE_BYTES}, "txt") for url in urls)
    return sum(len(sample.content("jpg")) == IMAGE_BYTES for reader in readers for sample in reader)


def _read_with_curl(urls: Sequence[str]) -> int:
    warnings.simplefilter("ignore")
    samples = webdataset.WebDataset(list(urls), shardshuffle=False, handler=webdataset.ignore_and_continue)
    return sum(len(sample.get("jpg", b"")) == IMAGE_BYTES for sample in samples)


READERS = {"nti_batch": _read_here, "WebDataset": _read_with_curl}


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for index in range(IMAGES):
            for extension, size in (("jpg", IMAGE_BYTES), ("txt", 20)):
                member = tarfile.TarInfo(f"{index:04}.{extension}")
                member.size = size
                tar.addfile(member, io.BytesIO(bytes(size)))
    return file.getvalue()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, content: bytes, fault: str) -> None:
        self.content, self.fault = content, fault
        self.requests: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Give the rest of the tar from the wanted byte on, or a third of the whole."""
        content, fault = self.server.content, self.server.fault
        self.server.requests[self.path] += 1
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", '"1"')
        self.end_headers()
        breaks = self.server.requests[self.path] <= FAULTS[fault]
        self.wfile.write(memoryview(content)[start : start + len(content) // 3 if breaks else None])
        if breaks and "stall" in fault:
            time.sleep(SILENCE)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    main()
