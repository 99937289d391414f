"""Fixtures of the tests of the page: a run of the embedded model, and its workbench."""

from pathlib import Path

import pytest

from nti_batch.app.workbench import Workbench
from nti_batch.cli import main
from nti_batch.models.load import load_model
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion

IMAGES = 3


@pytest.fixture(scope="session")
def app_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three scenes, in four steps."""
    out = tmp_path_factory.mktemp("app") / "run"
    samples = Path(__file__).parents[2] / "nti_batch" / "demo" / "samples" / "scenes-*.tar"
    few = ["--model.num_steps=4", "--model.num_inner_steps=1", f"--data.limit={IMAGES}", "--trainer.accelerator=cpu"]
    assert main(["invert", f"--data.shards={samples}", f"--output.dir={out}", *few]) == 0
    return out


@pytest.fixture(scope="session")
def demo_networks() -> StableDiffusion:
    """The embedded model."""
    return load_model(ModelSource("demo"), "float32", None).cpu()


@pytest.fixture
def workbench(app_run: Path, demo_networks: StableDiffusion) -> Workbench:
    """The run with its model."""
    return Workbench(app_run, demo_networks)
