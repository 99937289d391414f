"""A run gives back what was written, names what is damaged, and salvages the work of a killed job."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.crashes import fill_disk_at, largest_file
from helpers.inversions import KEYS, ORIGIN, SETTINGS, UNIT, inversion
from helpers.runs import create_run, write
from helpers.tars import forge

from nti_batch import read_inversions
from nti_batch.files import OutputError
from nti_batch.output import run_files
from nti_batch.output.inversions import InversionRun, open_inversions
from nti_batch.output.manifest import Manifest
from nti_batch.output.manifest_rows import InversionRow
from nti_batch.records import Failure, WorkUnit


@pytest.fixture
def run(tmp_path: Path) -> InversionRun:
    """A new run."""
    run = create_run(tmp_path / "out", SETTINGS, ["shard[0].tar"])
    return run


def test_inversions_are_read_back_bit_for_bit(run: InversionRun):
    write(run, KEYS)
    found = {stored.key: stored for stored in read_inversions(run.out)}
    assert list(found) == KEYS
    for key, stored in found.items():
        expected = inversion(key)
        assert torch.equal(stored.null_embeddings, expected.null_embeddings)
        assert torch.equal(stored.noise_latents, expected.noise_latents)
        assert (stored.shard, stored.prompt) == ("shard[0]", expected.prompt)
        assert stored.settings == SETTINGS
        assert stored.metadata["losses"] == [1e-5, 2e-5]


def test_no_member_leaves_the_folder_that_a_part_is_unpacked_in(run: InversionRun):
    part = write(run, KEYS)
    with tarfile.open(part) as tar:
        names = tar.getnames()
        assert all((m.mtime, m.uid, m.gid, m.uname) == (0, 0, 0, "") for m in tar)
    assert len(set(names)) == 2 * len(KEYS)
    assert all("/" not in name and name.count(".") == 1 and not name.startswith(".") for name in names)


def test_only_the_parts_that_hold_a_chosen_image_are_opened(run: InversionRun):
    write(run, ["a", "b"])
    damaged = write(run, ["c"])
    damaged.write_bytes(b"")
    assert [stored.key for stored in read_inversions(run.out, [("shard[0]", "b")])] == ["b"]


def test_a_manifest_has_a_row_for_each_inversion_and_each_failure(run: InversionRun):
    part = run.new_part(UNIT, ORIGIN)
    part.add(inversion("good"))
    part.add_failure(Failure(UNIT, "bad", "image", "it is HTML"))
    part.commit()
    done, failed = run.rows(UNIT)
    assert (done.key, done.status, done.psnr, done.inner_steps, done.forwards) == ("good", "done", 30.25, 13, 17)
    assert (failed.key, failed.status, failed.stage, failed.error) == ("bad", "failed", "image", "it is HTML")
    assert run.rows(WorkUnit("shard[0]", "shard[0].tar", 0, 3)) == []
    assert part.part.name == "shard[0].1of3.00000.tar"


def test_nothing_is_committed_before_its_manifest(run: InversionRun):
    write(run, ["a"], commit=False)
    assert list(read_inversions(run.out)) == []
    assert run.rows(UNIT) == []


def test_a_failure_alone_makes_no_empty_tar(run: InversionRun):
    part = run.new_part(UNIT, ORIGIN)
    part.add_failure(Failure(UNIT, "bad", "caption", "empty"))
    part.commit()
    assert [p.suffix for p in run.folder.iterdir()] == [".jsonl"]
    assert list(read_inversions(run.out)) == []


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
def test_a_part_cut_anywhere_gives_back_every_whole_image(run: InversionRun, share: float):
    keys = ["a", "bb", "ccc"]
    part = write(run, keys, commit=False)
    unfinished = part.with_name(part.name + ".tmp")
    content = unfinished.read_bytes()
    one_image = len(content) // 3
    cut = int(len(content) * share)
    unfinished.write_bytes(content[:cut])
    whole = cut // one_image
    assert run.salvage(UNIT) == whole
    assert [stored.key for stored in read_inversions(run.out)] == keys[:whole]
    assert [p.name for p in run.folder.iterdir() if p.suffix not in (".tar", ".jsonl")] == []
    assert run.salvage(UNIT) == 0


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("call", range(5))
def test_a_commit_that_fails_at_any_step_loses_and_repeats_nothing(
    run: InversionRun, monkeypatch: pytest.MonkeyPatch, failing: str, call: int
):
    write(run, ["earlier"])
    part = run.new_part(UNIT, ORIGIN)
    for key in ("a", "b"):
        part.add(inversion(key))
    with monkeypatch.context() as patch:
        fill_disk_at(patch, failing, call)
        try:
            part.commit()
        except OutputError as error:
            assert "No space left on device" in str(error)
    again = open_inversions(run.out)
    again.salvage(UNIT)
    assert sorted(row.key for row in again.rows(UNIT)) == ["a", "b", "earlier"]
    assert sorted(stored.key for stored in read_inversions(run.out)) == ["a", "b", "earlier"]


def test_a_disk_that_fills_up_is_named_and_leaves_a_whole_part(run: InversionRun):
    part = run.new_part(UNIT, ORIGIN)
    part.add(inversion("a"))
    size = part.part.with_suffix(".tar.tmp").stat().st_size
    too_large = pytest.raises(OutputError, match=r"00000\.tar cannot be written: File too large; what is committed")
    with largest_file(size + 700), too_large:
        part.add(inversion("b"))
    part.add(inversion("c"))
    part.commit()
    assert [stored.key for stored in read_inversions(run.out)] == ["a", "c"]
    manifest = Manifest.read(part.part.with_suffix(".jsonl"), InversionRow)
    assert manifest.tar == part.part
    assert manifest.tar_sha256 == hashlib.sha256(part.part.read_bytes()).hexdigest()


def test_a_failed_salvage_is_salvaged(run: InversionRun, monkeypatch: pytest.MonkeyPatch):
    write(run, ["a", "bb"], commit=False)
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="cannot be written: gone"):
        patch.setattr(run_files, "atomic_write", lambda *_: (_ for _ in ()).throw(OSError(5, "gone")))
        run.salvage(UNIT)
    run.salvage(UNIT)
    assert sorted(row.key for row in run.rows(UNIT)) == ["a", "bb"]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (b'"inner_steps": [10, 3]', b'"inner_stepz": [10, 3]'),
        (b'"inner_steps": [10, 3]', b'"inner_steps": [10,""]'),
        (b'"key": "bb"', b'"key": "ab"'),
        (b'"key": "bb"', b'"key":  22 '),
        (b'{"shard"', b'["shard"'),
    ],
)
def test_salvage_ends_before_an_image_that_is_not_as_it_was_written(run: InversionRun, written: bytes, found: bytes):
    unfinished = write(run, ["a", "bb"], commit=False).with_suffix(".tar.tmp")
    before, old, after = unfinished.read_bytes().rpartition(written)
    assert old and len(found) == len(old)
    unfinished.write_bytes(before + found + after)
    assert run.salvage(UNIT) == 1
    assert [stored.key for stored in read_inversions(run.out)] == ["a"]


def test_salvage_ends_before_a_json_of_another_kind_and_before_a_size_that_goes_back(run: InversionRun):
    unfinished = write(run, ["a", "bb"], commit=False).with_suffix(".tar.tmp")
    content = unfinished.read_bytes()
    start, json_start = content.index(b"bb.safetensors"), content.rindex(b'{"shard"')
    no_object = content[:json_start] + b"null".ljust(len(content) - json_start)
    goes_back = content[:start] + forge(content[start:], (124, (-start - 512).to_bytes(12, "big", signed=True)))
    for number, damaged in enumerate((no_object, goes_back)):
        unit = WorkUnit("shard[0]", "shard[0].tar", number, 3)
        (run.folder / f"{unit.name}.00000.tar.tmp").write_bytes(damaged)
        assert run.salvage(unit) == 1


def test_salvage_takes_an_image_that_was_written_twice_once(run: InversionRun):
    unfinished = write(run, ["a", "bb"], commit=False).with_suffix(".tar.tmp")
    unfinished.write_bytes(2 * unfinished.read_bytes())
    assert run.salvage(UNIT) == 2
    assert [stored.key for stored in read_inversions(run.out)] == ["a", "bb"]


def test_a_flipped_byte_is_found_and_the_part_is_named(run: InversionRun):
    part = write(run, ["a", "b"])
    content = bytearray(part.read_bytes())
    content[700] ^= 1
    part.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard\[0\]\.1of3\.00000\.tar is damaged"):
        list(read_inversions(run.out))


def test_a_missing_image_is_found(run: InversionRun):
    part = write(run, ["a", "b"])
    with tarfile.open(part) as tar:
        kept = [(m, tar.extractfile(m).read()) for m in tar if m.name.startswith("a.")]
    with tarfile.open(part, "w") as tar:
        for info, content in kept:
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"is damaged: it does not have the checksum in its manifest"):
        list(read_inversions(run.out))


def test_other_settings_are_refused_with_the_difference(run: InversionRun):
    with pytest.raises(ValueError, match=r"model\.num_steps: 2 there, 50 now\): ask for the same settings, or give"):
        create_run(run.out, replace(SETTINGS, num_steps=50), [])


def test_shards_may_be_added(run: InversionRun):
    create_run(run.out, SETTINGS, ["more.tar"])
    assert list(open_inversions(run.out).shards) == ["shard[0]", "more"]


def test_a_shard_may_move(run: InversionRun, tmp_path: Path):
    create_run(run.out, SETTINGS, [str(tmp_path / "elsewhere" / "shard[0].tar")])
    assert open_inversions(run.out).shards == {"shard[0]": str(tmp_path / "elsewhere" / "shard[0].tar")}
    create_run(run.out, SETTINGS, ["https://user:word@host/shard[0].tar?token=3#a"])
    assert open_inversions(run.out).shards == {"shard[0]": "https://host/shard[0].tar"}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is no run of `nti-batch invert`: it has no 'run\.json'"):
        list(read_inversions(tmp_path))


def test_a_damaged_manifest_is_named(run: InversionRun):
    part = write(run, ["a"])
    with part.with_suffix(".jsonl").open("a") as manifest:
        manifest.write('{"shard": "x"')
    with pytest.raises(ValueError, match=r"00000\.jsonl is damaged"):
        list(read_inversions(run.out))


def test_rows_are_json_without_surprises(run: InversionRun):
    write(run, ["a"])
    (row,) = run.rows(UNIT)
    assert json.loads(json.dumps(row.to_json())) == row.to_json()
    assert InversionRow.from_json(row.to_json()) == row
