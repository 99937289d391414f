"""The scripts under `examples/` run, and do what they say."""

import re
import runpy
from pathlib import Path

import pytest
from helpers.jobs import arguments
from helpers.tiny import captioned, write_shard
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
