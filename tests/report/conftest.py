"""Fixtures of the tests of reports: a run with failures and hostile captions, and its page."""

import shutil
from pathlib import Path

import pytest
from helpers.jobs import arguments
from helpers.pages import Element
from helpers.reports import write_hostile_shards, written

from nti_batch.cli import main
from nti_batch.output.inversions import InversionRun, open_inversions


@pytest.fixture(scope="session")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two shards, which have three damaged images and one hostile caption, and their run."""
    folder = tmp_path_factory.mktemp("report")
    write_hostile_shards(folder)
    assert main(arguments(tiny_model, f"{folder}/*.tar", folder / "out")) == 3
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> InversionRun:
    """Copy of the run."""
    return open_inversions(Path(shutil.copytree(finished / "out", tmp_path / "out")))


@pytest.fixture(scope="session")
def page(finished: Path) -> Element:
    """Page of the whole run with all its images."""
    return written(finished / "out", "--images=9")
