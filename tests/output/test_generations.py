"""Rows of several generations, shards that move, and what a manifest says of its part."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.inversions import ORIGIN, SETTINGS, UNIT, inversion
from helpers.runs import create_run, write

from nti_batch import read_inversions
from nti_batch.output.inversions import InversionRun, open_inversions
from nti_batch.output.manifest import Manifest
from nti_batch.output.manifest_rows import InversionRow
from nti_batch.records import Failure


@pytest.fixture
def run(tmp_path: Path) -> InversionRun:
    """A new run."""
    return create_run(tmp_path / "out", SETTINGS, ["shard[0].tar"])


def test_jobs_that_start_together_lose_no_shard_and_mix_no_settings(tmp_path: Path):
    def create(number: int) -> int:
        try:
            create_run(tmp_path / "out", replace(SETTINGS, num_steps=1 + number % 2), [f"{number}.tar"])
        except ValueError:
            return -1
        return number

    with ThreadPoolExecutor(16) as pool:
        created = set(pool.map(create, range(64))) - {-1}
    run = open_inversions(tmp_path / "out")
    assert set(run.shards) == {str(number) for number in created}
    assert len({number % 2 for number in created}) == 1


def test_of_several_rows_of_an_image_the_highest_generation_counts(run: InversionRun):
    part = run.new_part(UNIT, ORIGIN)
    part.add(inversion("a"))
    part.add(inversion("b"))
    part.add_failure(Failure(UNIT, "c", "image", "it is HTML"))
    part.add_failure(Failure(UNIT, "", "shard", "it is cut"))
    part.commit()
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    for key, prompt in (("a", "second"), ("c", "second"), ("a", "third")):
        run.claim(UNIT)
        part = run.new_part(UNIT, ORIGIN)
        part.add(replace(inversion(key), prompt=prompt))
        part.commit()
        run.release(UNIT)
    run.claim(UNIT)
    part = run.new_part(UNIT, ORIGIN)
    part.add_recovery(UNIT)
    part.commit()
    run.release(UNIT)
    assert {path: path.read_bytes() for path in before} == before, "nothing is rewritten"
    assert {row.key: (row.status, row.generation) for row in run.rows(UNIT)} == {
        "a": ("done", 2),
        "b": ("done", 0),
        "c": ("done", 1),
        "": ("recovered", 1),
    }
    found = {stored.key: stored.prompt for stored in read_inversions(run.out)}
    assert found == {"a": "third", "b": inversion("b").prompt, "c": "second"}
    assert [stored.prompt for stored in read_inversions(run.out, [("shard[0]", "a")])] == ["third"]


@pytest.mark.parametrize("generation", [0, 1])
def test_salvage_takes_an_image_that_replaces_a_committed_one(run: InversionRun, generation: int):
    write(run, ["a", "bb"])
    if generation:
        run.claim(UNIT)
    write(run, ["a"], commit=False)
    assert run.salvage(UNIT) == generation
    run.release_all()
    assert {row.key: row.generation for row in run.rows(UNIT)} == {"a": generation, "bb": 0}


def test_a_manifest_names_its_tar_and_what_made_it(run: InversionRun):
    manifest = Manifest.read(write(run, ["a"]).with_suffix(".jsonl"), InversionRow)
    assert manifest.tar == run.folder / "shard[0].1of3.00000.tar"
    origin = manifest.origin.to_json()
    assert origin.keys() == {"nti_batch", "torch", "diffusers", "device", "driver"}
    assert (origin["torch"], origin["device"], origin["driver"]) == (torch.__version__, "cpu", None)


@pytest.mark.parametrize("name", ["../a.tar", "/etc/passwd", "a.jsonl", 3])
def test_a_manifest_that_names_a_file_elsewhere_is_damaged(run: InversionRun, name: object):
    path = write(run, ["a"]).with_suffix(".jsonl")
    *rows, footer, _ = path.read_text().splitlines()
    content = "\n".join([*rows, json.dumps({**json.loads(footer), "tar": name})])
    path.write_text(f"{content}\n{json.dumps({'sha256': hashlib.sha256(content.encode()).hexdigest()})}\n")
    with pytest.raises(ValueError, match=r"00000\.jsonl is damaged: .*tar is .*, allowed"):
        list(read_inversions(run.out))
