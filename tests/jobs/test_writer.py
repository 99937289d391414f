"""Records are written in a thread: in their order, all of them at a stop, and none after an error."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.inversions import ORIGIN, SETTINGS, UNIT, inversion
from helpers.jobs import arguments, ids, rows
from helpers.runs import create_run
from helpers.tiny import captioned, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.diffusion.pool import InversionPool
from nti_batch.files import OutputError
from nti_batch.jobs import writer
from nti_batch.jobs.failure_limit import FailureLimit, TooManyFailuresError
from nti_batch.jobs.signals import StopSignals
from nti_batch.jobs.writer import RecordWriter
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.part import PartWriter
from nti_batch.records import EndOfUnit, Failure


@contextmanager
def open_writer(out: Path, part_images: int = 64, limit: FailureLimit | None = None) -> Iterator[RecordWriter]:
    """A writer of a run, whose only unit is claimed."""
    run = create_run(out, SETTINGS, ["shard[0].tar"])
    run.claim(UNIT)
    opened = RecordWriter(run, part_images, 10, limit)
    opened._origin = ORIGIN
    yield opened
    run.release_all()


def slowly(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], object]) -> None:
    """Call a function before each record that is written, with the number of those before it."""
    real, written = PartWriter.add, iter(range(100))

    def add(part: Any, record: Any) -> None:
        before(next(written))
        real(part, record)

    monkeypatch.setattr(PartWriter, "add", add)


def manifests(out: Path) -> list[list[str]]:
    """Keys in each manifest, in their order."""
    paths = sorted(out.glob("inversions/*.jsonl"))
    return [[row["key"] for row in map(json.loads, path.read_text().splitlines()[:-2])] for path in paths]


def test_records_are_written_beside_the_caller_and_committed_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gate = threading.Event()
    slowly(monkeypatch, lambda number: gate.wait(60))
    with open_writer(tmp_path, part_images=3) as opened:
        for key in "abcdefg":
            opened.put(inversion(key))
        assert opened.tally.done == 0, "the caller did not wait"
        gate.set()
        opened.put(EndOfUnit(UNIT, 7, 7))
        opened.commit_all()
    assert manifests(tmp_path) == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert opened.tally.done == 7


def test_only_so_many_records_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "MAX_WAITING", 2)
    put, behind = 0, []

    def count(number: int) -> None:
        time.sleep(0.02)
        behind.append(put - number)

    slowly(monkeypatch, count)
    with open_writer(tmp_path) as opened:
        for key in "abcdefgh":
            opened.put(inversion(key))
            put += 1
        opened.commit_all()
    assert 2 <= max(behind) <= 3


def test_an_error_ends_the_writing_and_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No record is written after it: a part begun again would replace what the broken one holds."""

    def break_third(number: int) -> None:
        if number == 2:
            raise OutputError("the disk is full")

    slowly(monkeypatch, break_third)
    with open_writer(tmp_path) as opened:
        with pytest.raises(OutputError, match="the disk is full"):
            for key in "abcdefghijklm":
                opened.put(inversion(key))
                time.sleep(0.01)
        opened.commit_all()
    assert manifests(tmp_path) == [["a", "b"]]


def test_an_error_after_the_last_record_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(number: int) -> None:
        time.sleep(0.05)
        raise OutputError("the disk is full")

    slowly(monkeypatch, fail)
    with open_writer(tmp_path) as opened:
        opened.put(inversion("a"))
        with pytest.raises(OutputError, match="the disk is full"):
            opened.commit_all()


def test_too_many_failures_end_the_writing_after_the_one_too_many(tmp_path: Path):
    with (
        open_writer(tmp_path, limit=FailureLimit.parse("1")) as opened,
        pytest.raises(TooManyFailuresError, match=r"2 of 3 images have failed, and data\.max_failures is 1"),
    ):
        opened.put(inversion("a"))
        for key in "bcdef":
            opened.put(Failure(UNIT, key, "image", "it is HTML"))
        opened.commit_all()
    assert manifests(tmp_path) == [["a", "b", "c"]]


def test_a_stop_commits_what_waits_to_be_decoded_and_to_be_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The stop comes with the third finished image of a job that decodes up to four together, and writes slowly."""
    shard, out = write_shard(tmp_path / "s.tar", captioned(40)), tmp_path / "out"
    real, finished = InversionPool.advance, 0
    stops: list[StopSignals] = []

    def advance(pool: InversionPool[Any]) -> object:
        nonlocal finished
        done = real(pool)
        finished += len(done)
        if finished >= 3:
            stops[-1].request()
        return done

    monkeypatch.setattr(InversionPool, "advance", advance)
    monkeypatch.setattr(StopSignals, "handle_all", lambda stop, ranks: stops.append(stop))
    slowly(monkeypatch, lambda number: time.sleep(0.05))
    assert main(arguments(tiny_model, shard, out, "--model.batch_size=8", "--data.units_per_shard=1")) == 75
    assert len(ids(out)) == finished >= 3
    assert not list(out.glob("inversions/*.tmp")) and not list(out.glob("inversions/*.lock"))


def test_a_job_that_breaks_releases_its_work_units(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The units of the input that was read ahead, too; the job ends in its own process."""
    shard, out = write_shard(tmp_path / "s.tar", captioned(12)), tmp_path / "out"
    job = arguments(tiny_model, shard, out, "--data.units_per_shard=4")
    with monkeypatch.context() as patch:
        slowly(patch, lambda number: os.close(-1) if number == 2 else None)
        assert main(job) == 1
    assert not list(out.glob("inversions/*.lock"))
    assert main(job) == 0
    assert len(rows(out)) == 12


@pytest.mark.parametrize(("batch_size", "calls"), [(1, {1}), (3, {3, 1}), (8, {8, 2})])
def test_images_and_prompts_are_encoded_in_batches_and_equal_prompts_once(
    batch_size: int, calls: set[int], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    members = captioned(10)
    members |= {name: b"the same" for name in ("001.txt", "004.txt", "009.txt")}
    shard, out = write_shard(tmp_path / "s.tar", members), tmp_path / "out"
    encoded, prompts = set[int](), list[str]()

    class Counted(StableDiffusion):
        def encode_images(self, pixels: Any) -> Any:
            encoded.add(len(pixels))
            return super().encode_images(pixels)

        def embed_prompts(self, asked: list[str]) -> Any:
            prompts.extend(asked)
            return super().embed_prompts(asked)

    monkeypatch.setattr("nti_batch.jobs.networks.StableDiffusion", Counted)
    monkeypatch.setattr("nti_batch.commands.invert.draw_preview", lambda *_: None)
    flags = [f"--model.batch_size={batch_size}", "--data.units_per_shard=1"]
    assert main([*arguments(tiny_model, shard, out), *flags]) == 0
    assert encoded == calls
    assert sorted(prompts) == sorted({"", *(i.prompt for i in read_inversions(out))})
