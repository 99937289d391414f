"""Fixtures of the tests of jobs."""

from pathlib import Path

import pytest
from helpers.jobs import arguments
from helpers.tiny import captioned, write_shard

from nti_batch.cli import main


@pytest.fixture(scope="session")
def inverted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invert the shards a (000 to 004, and one that fails) and b (000)."""
    folder = tmp_path_factory.mktemp("inverted")
    write_shard(folder / "a.tar", captioned(5) | {"html.png": b"<html>", "html.txt": b"a page"})
    write_shard(folder / "b.tar", captioned(1))
    assert main(arguments(tiny_model, folder / "[ab].tar", folder / "out")) == 3
    return folder / "out"
