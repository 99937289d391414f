"""Shards from a server that cuts connections, stalls and refuses: reading goes on, or the shard is reported."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.jobs import arguments, ids
from helpers.tiny import captioned, write_shard

from nti_batch.cli import main
from nti_batch.data import download, shard_reader, transfer, web
from nti_batch.data.samples import RawSample, Reading, read_unit
from nti_batch.data.shard_reader import read_keys
from nti_batch.records import Failure, WorkUnit

IMAGES = 40


class Server(ThreadingHTTPServer):
    """Serves a tar under /BEHAVIOUR/FAILURES/s.tar: the first FAILURES requests meet the behaviour."""

    def __init__(self, content: bytes) -> None:
        """Listen on a port that is free."""
        self.content = content
        self.knows_ranges = True
        self.headers = {"ETag": '"1"'}
        self.requests: Counter[str] = Counter()
        self.ranges: list[str | None] = []
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
        """Behave as the path says: a cut and a stall come after a third of the tar."""
        _, behaviour, failures, name = self.path.split("/")
        if name not in ("s.tar", "s[1-3]{a,b}.tar"):
            self.send_error(404)
            return
        self.server.requests[self.path] += 1
        self.server.ranges.append(self.headers["Range"])
        content, fails = self.server.content, self.server.requests[self.path] <= int(failures)
        if fails and behaviour.isdecimal():
            self.send_error(int(behaviour))
            return
        if fails and behaviour == "silent":
            self.server.closing.wait(60)
            return
        start = int((self.headers["Range"] or "bytes=0-")[6:-1]) if self.server.knows_ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for header in self.server.headers.items():
            self.send_header(*header)
        if behaviour != "chunked":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + len(content) // 3] if fails else content[start:])
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
    monkeypatch.setattr(download, "RETRY_DELAYS", (0.0, 0.0))
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


REFUSED = "the server answers 404 Not Found, after 0 keys"
KEYS = [f"{i:03}" for i in range(IMAGES)]


@pytest.mark.parametrize("behaviour", ["cut", "stall"])
def test_a_broken_transfer_goes_on_at_the_byte_where_it_broke(server: Server, behaviour: str):
    assert read_keys_and_error(server.url(behaviour, 2)) == (KEYS, "")
    third = len(server.content) // 3
    assert server.ranges == [None, f"bytes={third}-", f"bytes={2 * third}-"]
    assert read_keys(server.url(behaviour, 1))[0] == KEYS


@pytest.mark.parametrize("behaviour", ["cut", "stall", "silent"])
def test_a_server_without_ranges_is_read_again_from_the_start(server: Server, behaviour: str):
    server.knows_ranges = False
    assert read_keys_and_error(server.url(behaviour, 2)) == (KEYS, "")
    assert server.requests.total() == 3


def test_a_transfer_may_break_as_often_as_it_gets_further(server: Server):
    """A third of the tar comes before each cut, and the last cut is at its end."""
    assert read_keys_and_error(server.url("cut", 99)) == (KEYS, "")
    assert 3 <= server.requests.total() <= 4


def test_a_tar_of_unknown_size_is_read_to_its_end(server: Server):
    server.headers = {}
    assert read_keys_and_error(server.url("chunked", 0)) == (KEYS, "")


@pytest.mark.parametrize("status", ["408", "429", "500", "503"])
def test_a_server_that_is_overloaded_is_asked_again(server: Server, status: str):
    assert read_keys_and_error(server.url(status, 2)) == (KEYS, "")
    assert server.requests.total() == 3


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("cut", "the connection was cut (tried 3 times)"),
        ("stall", "nothing came for 1 seconds (tried 3 times)"),
    ],
)
def test_a_transfer_that_gets_no_further_keeps_what_came_and_fails_the_shard(
    server: Server, behaviour: str, reason: str
):
    server.knows_ranges = False
    keys, error = read_keys_and_error(server.url(behaviour, 99))
    assert keys == KEYS[: len(keys)]
    assert 0 < len(keys) < IMAGES
    assert error.startswith(reason)
    assert server.requests.total() == 3


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("change", ["tag", "time", "longer", "shorter"])
def test_a_file_that_changes_between_two_connections_fails_the_shard(server: Server, change: str, knows_ranges: bool):
    server.knows_ranges = knows_ranges
    if change == "time":
        server.headers = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}

    def alter() -> bool:
        if server.requests.total():
            match change:
                case "tag":
                    server.headers = {"ETag": '"2"'}
                case "time":
                    server.headers = {"Last-Modified": "Wed, 21 Oct 2015 07:28:01 GMT"}
                case "longer":
                    server.content = whole + bytes(512)
                case "shorter":
                    server.content = whole[: len(whole) // 4]
        return False

    whole = server.content
    rows = list(read_unit(WorkUnit("s", server.url("cut", 1), 0, 1), "txt", stopped=alter))
    assert isinstance(rows[-1], Failure)
    assert re.match("the file has (changed|become shorter) on the server while it was read", rows[-1].error)
    assert 0 < sum(isinstance(row, RawSample) for row in rows) < IMAGES


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
    assert f"{where}: cannot be read to its end: {REFUSED}" in captured.out
    assert f"1, from {where} to {where}" in (out / "report.html").read_text()
    shown = [path.read_text() for path in out.rglob("*") if path.suffix in {".log", ".html", ".jsonl"}]
    assert not [text for text in (captured.out, captured.err, *shown) if "PASSWORD" in text or "TOKEN" in text]


def test_brackets_and_braces_are_part_of_a_name(server: Server):
    assert read_keys_and_error(server.url("cut", 0).replace("s.tar", "s[1-3]{a,b}.tar")) == (KEYS, "")
    assert server.requests.total() == 1


def test_a_refusal_is_final(server: Server):
    keys, error = read_keys_and_error(server.url("404", 99))
    assert keys == []
    assert error.startswith(REFUSED)
    assert server.requests.total() == 1


def test_a_server_that_is_always_broken_fails_the_shard(server: Server):
    keys, error = read_keys_and_error(server.url("500", 99))
    assert keys == []
    assert error.startswith("the server answers 500 Internal Server Error (tried 3 times)")
    assert server.requests.total() == 3


def test_a_host_that_is_not_there_fails_the_shard():
    keys, error = read_keys_and_error("http://127.0.0.1:9/s.tar")
    assert keys == []
    assert error.startswith("the host does not answer (tried 3 times)")


def test_a_server_that_answers_from_another_byte_on_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "_range", lambda response: (512, None))
    assert read_keys_and_error(server.url("cut", 0)) == (
        [],
        "the server answers from byte 512 on, asked for 0, after 0 keys",
    )


@pytest.mark.parametrize("url", ["http://host:99999/s.tar", "http:///s.tar", "http://[x/s.tar"])
def test_a_url_that_names_no_host_fails_the_shard(url: str):
    keys, error = read_keys_and_error(url)
    assert keys == []
    assert error.startswith("the url cannot be fetched")


@pytest.mark.parametrize("behaviour", ["stall", "cut"])
def test_a_stop_does_not_wait_for_a_transfer_and_fails_nothing(
    server: Server, behaviour: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 3600.0)
    monkeypatch.setattr(download, "RETRY_DELAYS", (3600.0,))
    url = server.url(behaviour, 99)
    rows = list(read_unit(WorkUnit("s", url, 0, 1), "txt", stopped=lambda: server.requests.total() > 0))
    assert all(isinstance(row, RawSample) for row in rows)


def test_the_job_reads_shards_from_a_server_that_cuts_and_stalls(server: Server, tiny_model: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert main(arguments(tiny_model, server.url("cut", 2), out)) == 0
    assert ids(out) == [("s", key) for key in KEYS]
    assert main(["verify", str(out), "--recompute", "1"]) == 0


def test_a_command_that_fails_starts_again(tmp_path: Path, server: Server):
    (tmp_path / "s.tar").write_bytes(server.content)
    once = f"pipe:cd {tmp_path}; if [ -e once ]; then cat s.tar; else touch once; head -c 20000 s.tar; exit 3; fi"
    rows = list(read_unit(WorkUnit("s", once, 0, 1), "txt", Reading(allow_pipe=True)))
    assert [row.key for row in rows if isinstance(row, RawSample)] == KEYS
    (*_, failure) = read_unit(
        WorkUnit("s", f"pipe:head -c 20000 {tmp_path}/s.tar; exit 3", 0, 1), "txt", Reading(allow_pipe=True)
    )
    assert isinstance(failure, Failure)
    assert failure.error.startswith("the command ended with exit code 3 (tried 3 times)")


@pytest.mark.parametrize("url", ["file://[x/a.tar", "file:///a%00b.tar"])
def test_a_url_that_names_no_file_fails_the_shard(url: str):
    (row,) = read(url)
    assert isinstance(row, Failure)
    assert (row.key, row.stage) == ("", "shard") and "is no" in row.error
