"""Shards from a server that cuts connections, stalls and refuses: each is tried again, then reported."""

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.jobs import arguments, ids
from helpers.tiny import captioned, write_shard
from webdataset.gopen import Pipe

from nti_batch.cli import main
from nti_batch.data import shard_reader, transfer
from nti_batch.data.samples import RawSample, read_unit
from nti_batch.data.shard_reader import read_keys
from nti_batch.records import Failure, WorkUnit

IMAGES = 40


class Server(ThreadingHTTPServer):
    """Serves a tar under /BEHAVIOUR/FAILURES/s.tar: the first FAILURES requests meet the behaviour."""

    def __init__(self, content: bytes) -> None:
        """Listen on a port that is free."""
        self.content = content
        self.requests: Counter[str] = Counter()
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, behaviour: str, failures: int) -> str:
        """Address of the tar."""
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/{failures}/s.tar"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_GET(self) -> None:
        """Behave as the path says."""
        _, behaviour, failures, name = self.path.split("/")
        if name not in ("s.tar", "s[1-3]{a,b}.tar"):
            self.send_error(404)
            return
        self.server.requests[self.path] += 1
        content, fails = self.server.content, self.server.requests[self.path] <= int(failures)
        if fails and behaviour.isdecimal():
            self.send_error(int(behaviour))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fails else content)
        if fails and behaviour == "stall":
            self.wfile.flush()
            self.server.closing.wait(60)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    content = write_shard(tmp_path / "s.tar", captioned(IMAGES)).read_bytes()
    with Server(content) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "RETRY_DELAYS", (0.0, 0.0))
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 1.0)


def read(url: str) -> list[RawSample | Failure]:
    return list(read_unit(WorkUnit("s", url, 0, 1), "txt"))


def read_keys_and_error(url: str) -> tuple[list[str], str]:
    """Read the keys of the whole samples, and the error of the shard."""
    rows = read(url)
    samples = [row for row in rows if isinstance(row, RawSample)]
    assert all(row.prompt == f"a small red circle, number {int(row.key)}" for row in samples)
    failures = [row for row in rows if isinstance(row, Failure)]
    assert {row.stage for row in failures} <= {"shard"}
    assert len(failures) <= 2, "the sample in which it broke, and the shard"
    return [row.key for row in samples], failures[-1].error if failures else ""


REFUSED = "'curl' ended with exit code 22: the server answers with an error; "
KEYS = [f"{i:03}" for i in range(IMAGES)]


@pytest.mark.parametrize("behaviour", ["cut", "stall"])
def test_a_broken_transfer_is_tried_again_and_gives_every_sample_once(server: Server, behaviour: str):
    assert read_keys_and_error(server.url(behaviour, 2)) == (KEYS, "")
    assert server.requests.total() == 3
    assert len(read_keys(server.url(behaviour, 1))[0]) == IMAGES


def test_curl_itself_tries_again_when_the_server_is_overloaded(server: Server):
    assert read_keys_and_error(server.url("503", 1)) == (KEYS, "")
    assert server.requests.total() == 2


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("cut", "'curl' ended with exit code 18: the connection was cut (tried 3 times)"),
        ("stall", "'curl' wrote nothing for 1 seconds (tried 3 times)"),
    ],
)
def test_a_transfer_that_breaks_every_time_keeps_what_came_and_fails_the_shard(
    server: Server, behaviour: str, reason: str
):
    keys, error = read_keys_and_error(server.url(behaviour, 99))
    assert keys == KEYS[: len(keys)]
    assert 0 < len(keys) < IMAGES
    assert error.startswith(reason)
    assert server.requests.total() == 3


def test_a_rewritten_url_is_no_consent_to_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOPEN_REWRITE", f"https://=pipe:touch {tmp_path}/ran; cat ")
    with pytest.raises(ValueError, match="runs a command in a shell"):
        read("https://host/s.tar")
    assert not (tmp_path / "ran").exists()


def test_neither_terminal_nor_log_nor_rows_show_the_credentials_of_a_url(
    server: Server, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """The job and the commands read from a server that refuses, under an address with a password and a token."""
    out, url = tmp_path / "out", server.url("404", 99).replace("//", "//user:PASSWORD@") + "?key=TOKEN#TOKEN"
    assert main(arguments(tiny_model, url, out)) == 3
    assert main(["verify", str(out)]) == 0
    assert main(["status", str(out)]) == 0
    for manifest in out.glob("inversions/*.jsonl"):
        manifest.unlink()
    assert main(["verify", str(out)]) == 1
    assert main(["report", str(out), "--images=0"]) == 0
    captured = capfd.readouterr()
    where = f"http://127.0.0.1:{server.server_port}/404/99/s.tar"
    assert f"{where}: cannot be read to its end: {REFUSED[:-2]}" in captured.out
    assert f"1, from {where} to {where}" in (out / "report.html").read_text()
    shown = [path.read_text() for path in out.rglob("*") if path.suffix in {".log", ".html", ".jsonl"}]
    assert not [text for text in (captured.out, captured.err, *shown) if "PASSWORD" in text or "TOKEN" in text]


def test_brackets_and_braces_are_part_of_a_name(server: Server):
    """By its own patterns, curl would ask for each of s1a.tar to s3b.tar."""
    assert read_keys_and_error(server.url("cut", 0).replace("s.tar", "s[1-3]{a,b}.tar")) == (KEYS, "")
    assert server.requests.total() == 1


def test_a_refusal_is_final(server: Server):
    keys, error = read_keys_and_error(server.url("404", 99))
    assert keys == []
    assert error.startswith(REFUSED)
    assert server.requests.total() == 1


def test_a_server_that_is_always_broken_fails_the_shard(server: Server, monkeypatch: pytest.MonkeyPatch):
    """WebDataset asks curl for 30 retries, 2 seconds apart; here for one."""

    def hasty(command: list[str], **more: object) -> object:
        return Pipe(["1" if word == "30" else word for word in command], **more)

    monkeypatch.setattr(transfer, "Pipe", hasty)
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 60.0)
    keys, error = read_keys_and_error(server.url("500", 99))
    assert keys == []
    assert error.startswith(REFUSED)
    assert server.requests.total() == 2


def test_a_host_that_is_not_there_fails_the_shard():
    keys, error = read_keys_and_error("http://127.0.0.1:9/s.tar")
    assert keys == []
    assert error.startswith("'curl' ended with exit code 7: the host does not answer (tried 3 times)")


@pytest.mark.parametrize("behaviour", ["stall", "cut"])
def test_a_stop_does_not_wait_for_a_transfer_and_fails_nothing(
    server: Server, behaviour: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 3600.0)
    monkeypatch.setattr(shard_reader, "RETRY_DELAYS", (3600.0,))
    url = server.url(behaviour, 99)
    rows = list(read_unit(WorkUnit("s", url, 0, 1), "txt", stopped=lambda: server.requests.total() > 0))
    assert all(isinstance(row, RawSample) for row in rows)


def test_the_job_reads_shards_from_a_server(server: Server, tiny_model: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert main(arguments(tiny_model, server.url("cut", 1), out)) == 0
    assert ids(out) == [("s", key) for key in KEYS]
    assert main(["verify", str(out), "--recompute", "1"]) == 0


@pytest.mark.parametrize("url", ["file://[x/a.tar", "file:///a%00b.tar"])
def test_a_url_that_names_no_file_fails_the_shard(url: str):
    (row,) = read(url)
    assert isinstance(row, Failure)
    assert (row.key, row.stage) == ("", "shard") and "is no" in row.error
