"""Mutated files of a run give right tensors or an error; nothing crashes, hangs or takes much memory.

This takes some seconds in the suite. With other examples each time, and for about ten minutes:

    pytest tests/output/test_fuzz.py --hypothesis-profile=long
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.fuzz import KEYS, SHARD, bounded
from helpers.inversions import ORIGIN, SETTINGS, UNIT, inversion
from helpers.mutations import mutate, mutations
from helpers.runs import create_run, plan_of
from hypothesis import given
from hypothesis import strategies as st

from nti_batch import read_inversions
from nti_batch.output.inversions import open_inversions
from nti_batch.output.manifest import Manifest
from nti_batch.output.manifest_rows import InversionRow
from nti_batch.output.part import read_members
from nti_batch.output.run_file import RUN_FILE
from nti_batch.output.serialization import StoredInversion
from nti_batch.records import Failure, WorkUnit
from nti_batch.report.integrity import verify_run


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


class StoredRun:
    """A committed run whose files can be changed and restored."""

    def __init__(self, out: Path) -> None:
        """Write the run and its input shard."""
        self.unit = WorkUnit("shard[0]", str(out / "shard[0].tar"), 0, 1)
        self.run = create_run(out, replace(SETTINGS, units_per_shard=1), [self.unit.url])
        Path(self.unit.url).write_bytes(SHARD)
        part = self.run.new_part(self.unit, ORIGIN)
        for key in KEYS[:-1]:
            part.add(inversion(key, self.unit))
        part.add_failure(Failure(self.unit, KEYS[-1], "image", "it is HTML"))
        part.commit()
        self.part, self.manifest = part.part, part.part.with_suffix(".jsonl")
        self.content = {path: path.read_bytes() for path in (self.part, self.manifest, self.run.out / RUN_FILE)}
        self.stored = list(read_inversions(out))


@pytest.fixture(scope="module")
def finished(folder: Path) -> StoredRun:
    """One run for all examples."""
    return StoredRun(folder / "out")


def is_same(one: StoredInversion, other: StoredInversion) -> bool:
    return (
        (one.shard, one.key, one.prompt, one.metadata) == (other.shard, other.key, other.prompt, other.metadata)
        and torch.equal(one.noise_latents, other.noise_latents)
        and torch.equal(one.null_embeddings, other.null_embeddings)
    )


@pytest.mark.parametrize("which", range(3), ids=["part", "manifest", "run"])
@given(data=st.data())
def test_a_mutated_run_is_read_as_it_was_or_names_the_file(finished: StoredRun, which: int, data: st.DataObject):
    path, content = list(finished.content.items())[which]
    changed = mutate(content, data.draw(mutations(len(content))))
    path.write_bytes(changed)
    found: list[StoredInversion] = []
    try:
        with bounded():
            found.extend(read_inversions(finished.run.out))
    except ValueError as error:
        assert str(path if path.exists() else finished.run.out) in str(error) or str(finished.part) in str(error)
    else:
        assert len(found) == len(finished.stored)
    finally:
        path.write_bytes(content)
    assert all(map(is_same, found, finished.stored))


@pytest.mark.parametrize("which", range(3), ids=["part", "manifest", "run"])
@given(data=st.data())
def test_verify_finds_every_mutation_of_a_part_or_a_manifest(finished: StoredRun, which: int, data: st.DataObject):
    path, content = list(finished.content.items())[which]
    changed = mutate(content, data.draw(mutations(len(content))))
    path.write_bytes(changed)
    try:
        with bounded():
            run = open_inversions(finished.run.out)
            findings = list(verify_run(plan_of(run), 0))
    except ValueError as error:
        assert path == finished.run.out / RUN_FILE, error
    else:
        assert bool(findings) == (changed != content) or path == finished.run.out / RUN_FILE
    finally:
        path.write_bytes(content)


@given(data=st.data())
def test_a_mutated_manifest_is_read_as_it_was_or_is_named(finished: StoredRun, data: st.DataObject):
    content = finished.content[finished.manifest]
    path = finished.run.out / "mutated.jsonl"
    path.write_bytes(mutate(content, data.draw(mutations(len(content)))))
    try:
        manifest = Manifest.read(path, InversionRow)
    except ValueError as error:
        assert str(error).startswith(f"{path} is damaged: ")
    else:
        assert manifest.rows == Manifest.read(finished.manifest, InversionRow).rows


@given(data=st.data())
def test_the_members_of_a_mutated_part_have_the_right_tensors_until_it_is_named(
    finished: StoredRun, data: st.DataObject
):
    content = finished.content[finished.part]
    payloads = [payload for payload, _ in read_members(finished.part)]
    path = finished.run.out / "mutated.tar"
    path.write_bytes(mutate(content, data.draw(mutations(len(content)))))
    try:
        with bounded():
            for payload, metadata in read_members(path):
                assert payloads[KEYS.index(str(metadata["key"]))] == payload
    except ValueError as error:
        assert str(error).startswith(f"{path} is damaged: ")


def salvaged(folder: Path, finished: StoredRun, content: bytes) -> list[StoredInversion]:
    """Salvage this unfinished part of a killed job, and return the inversions."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        run = create_run(Path(name), replace(SETTINGS, units_per_shard=1), [])
        run._part(UNIT, 0).with_suffix(".tar.tmp").write_bytes(content)
        with bounded():
            assert run.salvage(UNIT) == len(run.rows(UNIT))
        found = list(read_inversions(run.out))
        assert [stored.key for stored in found] == [row.key for row in run.rows(UNIT)]
        assert len({stored.key for stored in found}) == len(found)
        return found


@given(data=st.data())
def test_a_dead_jobs_part_is_salvaged_up_to_the_first_lost_write(
    folder: Path, finished: StoredRun, data: st.DataObject
):
    content = finished.content[finished.part]
    found = salvaged(folder, finished, mutate(content, data.draw(mutations(len(content), only_lost=True))))
    assert all(map(is_same, found, finished.stored))


@given(data=st.data())
def test_salvage_of_any_bytes_gives_right_tensors(folder: Path, finished: StoredRun, data: st.DataObject):
    content = finished.content[finished.part]
    stored = {stored.key: stored for stored in finished.stored}
    for found in salvaged(folder, finished, mutate(content, data.draw(mutations(len(content))))):
        assert torch.equal(found.noise_latents, stored[found.key].noise_latents)
        assert torch.equal(found.null_embeddings, stored[found.key].null_embeddings)
