"""The files have these keys, whatever the fields in the code are called."""

import dataclasses
import json
from pathlib import Path
from typing import cast

import pytest
import torch
from helpers.format_runs import EDIT_SETTINGS, SHARDS, edited, inverted, write_runs
from helpers.inversions import ORIGIN, SETTINGS, UNIT, inversion
from helpers.runs import create_run

import nti_batch
from nti_batch import EditSettings, read_inversions
from nti_batch.diffusion.rounding import Storage
from nti_batch.output.edits import EDIT, open_edits, read_edited_images
from nti_batch.output.format_version import FORMAT_VERSION
from nti_batch.output.inversions import open_inversions
from nti_batch.output.manifest_rows import EditRow, InversionRow
from nti_batch.output.part import read_members
from nti_batch.output.run_folder import OutputRun
from nti_batch.records import EditedImage, Failure
from nti_batch.settings import EditRunSettings

COMMON = [
    "shard",
    "key",
    "status",
    "stage",
    "error",
    "seconds",
    "finished",
    "sha256",
    "json_sha256",
    "input_sha256",
    "generation",
]
INVERSION = ["prompt_truncated", "psnr", "psnr_vae", "inner_steps", "forwards", "backwards"]
EDITED = ["name", "edit_prompt", "request_sha256", "psnr_unedited", "ssim_unedited", "mse_unedited"]
METADATA = [
    *("shard", "key", "prompt", "prompt_truncated", "width", "height", "timesteps", "inner_steps", "losses"),
    *("psnr_vae", "psnr", "forwards", "backwards", "seconds", "pooled_dim", "settings", "finished", "sha256"),
    *("input_sha256", "generation", "origin"),
]
VERSIONS = {"format_version": 2, "nti_batch": nti_batch.__version__}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_part_of_inversions_has_these_keys(tmp_path: Path):
    run = create_run(tmp_path, SETTINGS, ["shard[0].tar"])
    part = run.new_part(UNIT, ORIGIN)
    part.add(inversion("a"))
    part.add_failure(Failure(UNIT, "b", "image", "it is HTML"))
    part.commit()
    done, failed, footer, checksum = lines(part.part.with_suffix(".jsonl"))
    assert list(done) == list(failed) == COMMON + INVERSION
    assert (
        list(footer) == [*VERSIONS, "tar", "tar_sha256", "generation", "origin"] and footer.items() >= VERSIONS.items()
    )
    assert list(checksum) == ["sha256"]
    ((_, metadata),) = read_members(part.part)
    assert set(metadata) == {*METADATA, *VERSIONS}
    assert metadata.items() >= VERSIONS.items()
    assert metadata["settings"] == SETTINGS.to_json()


def test_a_part_of_edits_has_these_keys(tmp_path: Path):
    settings = EditRunSettings(
        model_name=None,
        model_config=None,
        inversions="/runs/a",
        edits=None,
        edit_prompt=None,
        units_per_shard=3,
        edit=EditSettings(),
    )
    run = OutputRun.create(EDIT, tmp_path, settings, {"shard[0]": "shard[0].tar"})
    part = run.new_part(UNIT, ORIGIN)
    pixels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    part.add(
        EditedImage(
            unit=UNIT,
            key="a",
            name="blue",
            edit_prompt="a blue cup",
            request_sha256="0" * 64,
            input_sha256="1" * 64,
            pixels=pixels,
            psnr_unedited=30.0,
            ssim_unedited=0.9,
            mse_unedited=0.001,
            seconds=1.0,
        )
    )
    part.add_failure(Failure(UNIT, "a", "edit", "a word is missing", "red"))
    part.commit()
    done, failed, footer, _ = lines(part.part.with_suffix(".jsonl"))
    assert list(done) == list(failed) == COMMON + EDITED
    assert failed["name"] == "red"
    assert footer.items() >= VERSIONS.items()
    ((_, metadata),) = read_members(part.part)
    own = ["shard", "key", "seconds", "settings", "finished", "sha256", "input_sha256", "generation", "origin"]
    assert sorted(metadata) == sorted([*own, *EDITED, *VERSIONS])


RUNS = Path(__file__).parent / "formats"
"""A small run of each format and layout, as `helpers.format_runs` wrote it."""


@pytest.mark.parametrize("name", [str(path.relative_to(RUNS)) for path in sorted(RUNS.glob("*/*-*"))])
def test_inversions_of_every_format_stay_readable(name: str):
    run = open_inversions(RUNS / name)
    storage = cast(Storage, (RUNS / name).name.partition("-")[0])
    assert (run.shards, run.settings.storage) == (SHARDS, storage)
    rows = {row.key: (row.status, row.stage, row.generation, row.input_sha256) for row in run.rows(UNIT)}
    assert rows == {
        "a": ("done", "", 1, "1" * 64),
        "b/c": ("done", "", 0, "1" * 64),
        "bad": ("failed", "image", 0, "2" * 64),
    }
    mark = run.complete_mark(UNIT)
    assert mark and mark.images == 3
    found = {stored.key: stored for stored in read_inversions(run.out)}
    assert found.keys() == {"a", "b/c"}
    for key, stored in found.items():
        expected = inverted(key, storage)
        assert expected.pivot is not None and stored.pivot is not None
        assert torch.equal(stored.null_embeddings, expected.null_embeddings)
        assert torch.equal(stored.noise_latents, expected.noise_latents)
        assert torch.equal(stored.pivot, expected.pivot)
        assert stored.metadata["losses"] == [1e-5, 2e-5]


@pytest.mark.parametrize("version", range(2, FORMAT_VERSION + 1))
def test_edits_of_every_format_stay_readable(version: int):
    run = open_edits(RUNS / str(version) / "edits")
    assert (run.shards, run.settings) == (SHARDS, EDIT_SETTINGS)
    rows = {row.id: row for row in run.rows(UNIT)}
    assert {key: (row.status, row.generation) for key, row in rows.items()} == {
        "a+blue": ("done", 1),
        "b%2Fc+blue": ("done", 0),
        "bad+blue": ("failed", 0),
    }
    images = {row.key: pixels for row, pixels in read_edited_images(run, UNIT, rows)}
    assert images.keys() == {"a", "b/c"}
    assert all(torch.equal(pixels, edited("a").pixels) for pixels in images.values())


def test_the_present_format_has_runs(tmp_path: Path):
    """A new format or layout comes with `python -m helpers.format_runs tests/output/formats/VERSION`."""
    write_runs(tmp_path)
    kept = RUNS / str(FORMAT_VERSION)
    assert {str(path.relative_to(kept)) for path in kept.rglob("*")} >= {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.suffix != ".lock"
    }


def test_each_column_names_a_field_of_its_row():
    for row_type in (InversionRow, EditRow):
        assert {column.field for column in row_type.columns.values()} == {
            field.name for field in dataclasses.fields(row_type)
        }
