"""`nti-batch app` refuses in one sentence what it cannot serve."""

import importlib.util
import socket
from pathlib import Path

import pytest

from nti_batch.cli import main
from nti_batch.commands import app as app_command


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_without_gradio_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    real = importlib.util.find_spec
    monkeypatch.setattr(app_command, "find_spec", lambda name: None if name == "gradio" else real(name))
    assert main(["app", str(tmp_path)]) == 2
    assert last_line(capsys) == "nti-batch: app needs gradio: pip install 'nti-batch[app]'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "'none' is no run of `nti-batch invert`"),
        (["--port=70000"], "--port is 70000, allowed: 0 to 65535"),
        (["https://bucket/run"], "the run is 'https://bucket/run', allowed: an address in an object store"),
        (["--model.name=none"], "none"),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    assert main(["app", *arguments]) == 2
    assert message in last_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_named(app_run: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["app", str(app_run), f"--port={port}"]) == 2
    assert f"the page cannot be served at 127.0.0.1 on port {port} (Address already in use" in last_line(capsys)
