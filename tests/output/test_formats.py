"""The files have these keys, whatever the fields in the code are called."""

import dataclasses
import json
from pathlib import Path

import torch
from helpers.inversions import ORIGIN, SETTINGS, UNIT, inversion
from helpers.runs import create_run

import nti_batch
from nti_batch import EditSettings
from nti_batch.output.edits import EDIT
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


def test_each_column_names_a_field_of_its_row():
    for row_type in (InversionRow, EditRow):
        assert {column.field for column in row_type.columns.values()} == {
            field.name for field in dataclasses.fields(row_type)
        }
