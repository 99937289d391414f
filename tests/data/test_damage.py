"""One job over many damaged shards: each image gets the row that it must get."""

import re
from pathlib import Path

import pytest
import torch
from helpers.damage import CASES, DONE, JSON_CASES, Case
from helpers.jobs import arguments
from helpers.runs import plan_of, units_of

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.output.inversions import open_inversions
from nti_batch.output.manifest_rows import InversionRow


def invert(model: Path, folder: Path, cases: list[Case], *more: str) -> Path:
    """Run a quick job over the shards of these cases, and return its output folder."""
    shards, out = folder / "shards", folder / "out"
    shards.mkdir()
    for case in cases:
        (shards / f"{case.shard}.tar").write_bytes(case.content)
    quick = ["--model.num_steps=1", "--model.num_inner_steps=1", "--model.batch_size=16", "--data.units_per_shard=1"]
    assert main([*arguments(model, f"{shards}/*.tar", out), *quick, *more]) == 3
    return out


@pytest.fixture(scope="module")
def texts(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the job over the cases with captions in texts."""
    return invert(tiny_model, tmp_path_factory.mktemp("damage"), CASES)


@pytest.fixture(scope="module")
def jsons(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the job over the cases with captions in JSON."""
    return invert(tiny_model, tmp_path_factory.mktemp("json"), JSON_CASES, "--data.caption=json:caption")


@pytest.fixture(scope="module")
def rows(texts: Path, jsons: Path) -> dict[str, list[InversionRow]]:
    """Rows by shard."""
    runs = open_inversions(texts), open_inversions(jsons)
    return {unit.shard: run.rows(unit) for run in runs for unit in units_of(run)}


@pytest.mark.parametrize("case", [*CASES, *JSON_CASES], ids=lambda case: case.shard)
def test_every_image_of_a_damaged_shard_gets_its_row(case: Case, rows: dict[str, list[InversionRow]]):
    ended = {row.key: row for row in rows[case.shard]}
    assert len(ended) == len(rows[case.shard]), "no image has two rows"
    assert {key: row.stage or row.status for key, row in ended.items()} == {
        key: row if row == DONE else row[0] for key, row in case.rows.items()
    }
    for key, row in case.rows.items():
        if row != DONE:
            assert re.search(row[1], ended[key].error), ended[key].error


def test_every_healthy_image_is_read_back_with_its_own_caption_and_image(texts: Path):
    expected = {(case.shard, key) for case in CASES for key, row in case.rows.items() if row == DONE}
    found = {(stored.shard, stored.key): stored for stored in read_inversions(texts)}
    assert found.keys() == expected
    for neighbour in ("a", "z"):
        first, *others = (stored for (_, key), stored in found.items() if key == neighbour)
        assert {stored.prompt for stored in (first, *others)} == {f"an image of {neighbour}"}
        for other in others:
            torch.testing.assert_close(other.noise_latents, first.noise_latents, atol=1e-4, rtol=1e-4)


def test_a_run_over_damaged_shards_is_complete_and_passes_verify(
    texts: Path, jsons: Path, capsys: pytest.CaptureFixture[str]
):
    for out in (texts, jsons):
        run = open_inversions(out)
        assert main(["verify", str(out)]) == 0
        assert capsys.readouterr().out.endswith("no findings: the run is intact\n")
        assert plan_of(run).status(units_of(run)).missing == 0


def test_every_case_is_different():
    shards = [case.shard for case in (*CASES, *JSON_CASES)]
    assert len(set(shards)) == len({case.content for case in (*CASES, *JSON_CASES)}) == len(shards) >= 60
