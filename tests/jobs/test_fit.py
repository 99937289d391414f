"""Images that are not square, through the jobs."""

import json
from pathlib import Path

import pytest
import torch
from helpers.edits import edit, edited_images, edits_flag, rows
from helpers.image_files import encode, gradient
from helpers.jobs import arguments
from helpers.tiny import write_shard

from nti_batch import InversionDataset, read_inversions
from nti_batch.cli import main
from nti_batch.data.fit import without_padding
from nti_batch.data.images import decode_image
from nti_batch.json_object import Json
from nti_batch.output.part import read_members
from nti_batch.records import Fit, Original

HEIGHT, WIDTH = 40, 60
IMAGE = encode(gradient(HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an image of 40 x 60 pixels for each way to fit it."""
    folder = tmp_path_factory.mktemp("runs")
    shard = write_shard(folder / "a.tar", {"000.png": IMAGE, "000.txt": b"a red cup"})
    for fit in ("crop", "pad", "stretch"):
        assert main(arguments(tiny_model, shard, folder / fit, *([] if fit == "crop" else [f"--data.fit={fit}"]))) == 0
    return folder


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_run_records_the_original_of_each_image(fit: Fit, runs: Path):
    (stored,) = read_inversions(runs / fit)
    assert stored.original == Original(HEIGHT, WIDTH, fit)
    assert stored.settings.fit == fit
    (item,) = InversionDataset(runs / fit, pixels=True)
    assert item.pixels is not None and torch.equal(item.pixels, decode_image(IMAGE, 16, 16, fit=fit))
    assert main(["verify", str(runs / fit), "--recompute=1"]) == 0


def test_the_default_leaves_run_json_as_it_was(runs: Path):
    """A run of an older version, which has no such key, resumes."""
    data = {fit: json.loads((runs / fit / "run.json").read_text())["settings"]["data"] for fit in ("crop", "pad")}
    assert "fit" not in data["crop"] and data["pad"]["fit"] == "pad"


def test_another_fit_does_not_continue_a_run(runs: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    job = arguments(tiny_model, runs / "a.tar", runs / "crop")
    assert main([*job, "--data.fit=pad"]) == 2
    assert 'data.fit: the default there, "pad" now' in capsys.readouterr().err
    assert main([*job, "--data.fit=crop"]) == 0
    assert main([*job, "--data.fit=squeeze"]) == 2
    assert "data.fit" in capsys.readouterr().err


def test_scores_leave_out_the_padding(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The edit may change the left half of the original; the test compares its right half."""
    left: list[Json] = [number for row in range(HEIGHT) for number in (WIDTH * row, WIDTH // 2)]
    request: dict[str, Json] = {
        "key": "000",
        "edit_prompt": "a blue cup",
        "mask": left,
        "mask_size": [HEIGHT, WIDTH],
        "name": "x",
    }
    flag = edits_flag(tmp_path / "e.jsonl", request)
    assert main(edit(runs / "pad", tmp_path / "out", flag)) == 0
    (image,) = edited_images(tmp_path / "out").values()
    (row,) = rows(tmp_path / "out").values()
    (stored,) = read_inversions(runs / "pad")
    assert stored.original
    pair = [without_padding(each, stored.original) / 255 for each in (image, decode_image(IMAGE, 16, 16, fit="pad"))]
    assert pair[0].shape == (3, 11, 16)
    error = (pair[0] - pair[1])[:, :, 8:].square().mean().item()
    assert row.mse_unedited == pytest.approx(error, rel=1e-4)
    (part,) = (tmp_path / "out" / "edits").glob("*.tar")
    ((_, metadata),) = read_members(part)
    assert metadata["original"] == {"height": HEIGHT, "width": WIDTH, "fit": "pad"}
    capsys.readouterr()
    assert main(["score", str(tmp_path / "out"), "--json"]) == 0
    (scored,) = json.loads(capsys.readouterr().out)
    assert scored["scores"]["unedited"]["mse"] == pytest.approx(error, rel=1e-4)
