"""The scripts and notebooks under `examples/` run, and do what they say."""

import base64
import os
import re
import runpy
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers.jobs import arguments
from helpers.tiny import captioned, write_shard
from PIL import Image
from safetensors.torch import load_file

from nti_batch.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_network_learns_from_the_null_embeddings_of_a_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = arguments(tiny_model, write_shard(tmp_path / "a.tar", captioned(3)), tmp_path / "out")
    # every embedding is updated, so that there is something to learn
    assert main([*job, "--model.early_stop_epsilon=0"]) == 0
    capsys.readouterr()
    weights = tmp_path / "predictor.safetensors"
    flags = ["--epochs=40", "--batch_size=3", "--learning_rate=0.01", f"--output={weights}"]
    monkeypatch.setattr("sys.argv", ["train_on_embeddings.py", str(tmp_path / "out"), *flags])
    runpy.run_path(str(EXAMPLES / "train_on_embeddings.py"), run_name="__main__")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"InversionDataset({str(tmp_path / 'out')!r}): 3 inversions of 1 shards"
    losses = [float(re.fullmatch(r"epoch \d+: (.*)", line)[1]) for line in lines]  # type: ignore[index]
    assert len(losses) == 40 and losses[-1] < losses[0] / 2 and losses[0] == pytest.approx(1, rel=0.2)
    assert load_file(weights)["mean"].shape == (3, 8)


@pytest.mark.long
def test_the_notebook_inverts_a_folder_and_its_edits_have_the_colours_of_their_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(EXAMPLES / "edits.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    preview, tried, job = (Image.open(BytesIO(base64.b64decode(image))).convert("RGB") for image in images)
    assert preview.width > 700
    # the middle of the heart, in the reconstruction, the red one and the star; then in the job's three edits by name
    assert [colour(tried, number) for number in range(3)] == ["white", "red", "white"]
    assert [colour(job, number) for number in range(3)] == ["green", "red", "yellow"]


def colour(row: Image.Image, number: int) -> str:
    """The nearest named colour of the heart of an image in a row of images of 192 x 192 pixels."""
    colours = {"white": (1, 1, 1), "red": (1, 0, 0), "yellow": (1, 1, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    heart = np.asarray(row)[40:55, 192 * number + 85 : 192 * number + 105].mean(axis=(0, 1)) / 255
    return min(colours, key=lambda name: float(np.abs(heart - colours[name]).sum()))
