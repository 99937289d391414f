"""A local S3 for tests: moto's server, and a proxy before it that answers wrongly."""

import http.client
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@contextmanager
def s3_server() -> Iterator[int]:
    """Run moto's server, and give its port."""
    code = (
        "import sys; from moto.server import ThreadedMotoServer; server = ThreadedMotoServer('127.0.0.1', 0, False); "
        "server.start(); print(server.get_host_and_port()[1], flush=True); sys.stdin.read()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with server:
        assert server.stdout
        yield int(server.stdout.readline())
        server.kill()


def make_bucket(port: int, name: str) -> None:
    """Make a bucket."""
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{name}", method="PUT")).close()


def use_endpoint(patch: pytest.MonkeyPatch, port: int) -> None:
    """Let this process and those that it starts use a server."""
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@dataclass
class Proxy:
    """Forwards requests to a server, and counts them by method.

    `rule` is asked for each request, with its method and path: None forwards it, a number is the status of the answer,
    'cut' closes the connection, 'lost' does so after it has forwarded the request, and 'unconditional' forwards it
    without its condition.
    """

    target: int
    rule: Callable[[str, str], str | int | None] = lambda method, path: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        method, path = handler.command, handler.path
        self.requests.append((method, path))
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        what = self.rule(method, path)
        if what == "cut":
            handler.close_connection = True
            return
        if isinstance(what, int):
            handler.send_response(what)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        server = http.client.HTTPConnection("127.0.0.1", self.target)
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "host"}
        if what == "unconditional":
            headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
        server.request(method, path, body, headers)
        with server.getresponse() as response:
            content = response.read()
        if what == "lost":
            handler.close_connection = True
            return
        handler.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                handler.send_header(name, value)
        if method != "HEAD" and response.getheader("Content-Length") is None:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if method != "HEAD":
            handler.wfile.write(content)


@contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """Run a proxy before a server."""
    made = Proxy(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made.answer(self)

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing: a worker that is killed leaves its connection."""

    with Server(("127.0.0.1", 0), Handler) as server:
        made.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()
