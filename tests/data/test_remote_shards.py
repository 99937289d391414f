"""Addresses of stores and of the hub, without a network."""

import sys
from pathlib import Path

import pytest
from helpers.jobs import arguments

from nti_batch.cli import main
from nti_batch.data import download, hub
from nti_batch.data.shard_reader import read_keys
from nti_batch.data.shards import expand_shards


@pytest.mark.parametrize(("address", "extra"), [("s3", "s3"), ("gs", "gcs"), ("az", "azure")])
@pytest.mark.parametrize("name", ["a.tar", "*.tar"])
def test_a_missing_extra_is_named(
    address: str,
    extra: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert main(arguments(tmp_path, f"{address}://bucket/{name}", tmp_path / "out")) == 2
    printed = "".join(capfd.readouterr())
    assert f"'{address}://bucket/{name}' is in an object store: pip install 'nti-batch[{extra}]'" in printed
    assert "Traceback" not in printed


class Hub:
    """Takes the place of `HfFileSystem`."""

    def glob(self, pattern: str) -> list[str]:
        """Return names of two files, or fail."""
        if "nobody" in pattern:
            raise FileNotFoundError(f"{pattern} (repository not found)\nmore")
        return ["datasets/user/name/b.tar", "datasets/user/name/a.tar", "datasets/user/name/README.md"]

    def url(self, address: str) -> str:
        """Fail as for a private repository, or without a network."""
        if "nobody" in address:
            raise FileNotFoundError(f"{address} (repository not found)")
        raise ConnectionError("no route to the host, with token=TOKEN at https://host/x?token=TOKEN")


@pytest.fixture
def of_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub)
    monkeypatch.setattr(download, "RETRY_DELAYS", (0.0,))


def test_a_glob_matches_the_tars_of_a_repository(of_hub: None):
    expected = ["hf://datasets/user/name/a.tar", "hf://datasets/user/name/b.tar"]
    assert expand_shards("hf://datasets/user/name/*") == expected
    with pytest.raises(ValueError, match=r"'hf://datasets/nobody/\*.tar' cannot be listed: the hub has no such file"):
        expand_shards("hf://datasets/nobody/*.tar")


def test_errors_of_the_hub_fail_the_shard(of_hub: None):
    keys, (error,) = read_keys("hf://datasets/user/nobody/a.tar")
    assert keys == []
    assert error.startswith("the hub has no such file, or not for this token: ")
    _, (error,) = read_keys("hf://datasets/user/name/a.tar")
    assert error.startswith("the hub does not answer: no route to the host")
    assert "(tried 2 times)" in error


def test_the_token_goes_to_the_hub_alone(monkeypatch: pytest.MonkeyPatch):
    sent: list[object] = []

    async def request(*arguments: object) -> object:
        sent.append(arguments)
        raise OSError("enough")

    monkeypatch.setattr(hub, "request_url", request)
    monkeypatch.setattr("huggingface_hub.HfFileSystem.url", lambda self, address: "https://hub/resolve/a.tar")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "TOKEN")
    _, (error,) = read_keys("hf://datasets/user/name/a.tar")
    assert sent == [("https://hub/resolve/a.tar", 0, "", {"Authorization": "Bearer TOKEN"})]
    assert "TOKEN" not in error
