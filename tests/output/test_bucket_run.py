"""Workers that share a run in an object store commit each record once, whatever happens to them."""

import dataclasses
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.inversions import ORIGIN, SETTINGS, UNIT, inversion
from helpers.object_store import proxy, use_endpoint

from nti_batch import read_inversions
from nti_batch.data.shards import Shards
from nti_batch.files import OutputError
from nti_batch.lock import UnitInUseError, UnitLock
from nti_batch.output import claims
from nti_batch.output.bucket import Bucket
from nti_batch.output.bucket_files import BucketFiles
from nti_batch.output.complete_mark import CompleteMark
from nti_batch.output.inversions import INVERT, InversionRun, open_inversions
from nti_batch.output.manifest import Manifest
from nti_batch.output.manifest_rows import InversionRow
from nti_batch.output.run_folder import OutputRun
from nti_batch.records import Failure

SHARDS = {"shard[0]": "/in/shard[0].tar"}


Start = Callable[..., InversionRun]


@pytest.fixture
def worker(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a worker on a disk of that name; claims count for no time, so that workers meet on one unit."""
    monkeypatch.setattr(claims, "CLAIM_SECONDS", -1.0)
    started: list[InversionRun] = []

    def start(disk: str, name: str = "run", shards: Shards = SHARDS) -> InversionRun:
        started.append(OutputRun.create(INVERT, f"{bucket}/{name}", SETTINGS, shards, spool=str(tmp_path / disk)))
        return started[-1]

    yield start
    for run in started:
        die(run)


def die(run: InversionRun) -> None:
    """Release what the system releases when a process dies."""
    locks: dict[str, UnitLock] = run.files._locks  # type: ignore[attr-defined]
    while locks:
        locks.popitem()[1].release()


def compute(run: InversionRun, *keys: str, failed: str = "") -> Any:
    """Compute images of the work unit, and one that fails."""
    part = run.new_part(UNIT, ORIGIN)
    for key in keys:
        part.add(inversion(key))
    if failed:
        part.add_failure(Failure(UNIT, failed, "image", "it is HTML"))
    return part


def committed(run: InversionRun) -> Counter[tuple[str, int]]:
    """How often each generation of each record is committed."""
    return Counter(
        (row.key, row.generation) for path in run.manifests(UNIT) for row in Manifest.read(path, InversionRow).rows
    )


def spooled(run: InversionRun) -> list[str]:
    return sorted(path.name for path in run.folder.iterdir() if "spool" in path.name)


def test_what_another_worker_has_committed_is_dropped(worker: Start, bucket: str):
    one, other = worker("one"), worker("other")
    assert one.claim(UNIT) == other.claim(UNIT) == []
    first, second = compute(one, "a", "bb"), compute(other, "bb", "ccc", failed="bad")
    first.commit()
    second.commit()
    assert committed(one) == committed(other) == {("a", 0): 1, ("bb", 0): 1, ("ccc", 0): 1, ("bad", 0): 1}
    compute(one, "ccc", failed="bad").commit()
    assert committed(one).total() == 4
    assert spooled(one) == spooled(other) == []
    assert sorted(stored.key for stored in read_inversions(f"{bucket}/run")) == ["a", "bb", "ccc"]


def test_what_another_worker_commits_during_a_salvage_is_dropped(worker: Start, monkeypatch: pytest.MonkeyPatch):
    one, other = worker("one"), worker("other")
    one.claim(UNIT)
    other.claim(UNIT)
    compute(one, "a", "bb").close()
    die(one)
    first, put = iter([compute(other, "bb").commit]), Bucket.put_file

    def put_later(bucket: Bucket, name: str, path: Path) -> None:
        for commit in first:
            commit()
        put(bucket, name, path)

    monkeypatch.setattr(Bucket, "put_file", put_later)
    again = worker("one")
    assert sorted(row.key for row in again.claim(UNIT)) == ["a", "bb"]
    assert committed(again) == {("a", 0): 1, ("bb", 0): 1}
    assert spooled(again) == []


def test_a_failed_image_that_two_workers_try_again_has_one_row_more(worker: Start):
    one, other = worker("one"), worker("other")
    one.claim(UNIT)
    compute(one, failed="a").commit()
    one.release(UNIT)
    assert [row.status for row in one.claim(UNIT)] == [row.status for row in other.claim(UNIT)] == ["failed"]
    first, second = compute(one, "a"), compute(other, failed="a")
    second.commit()
    first.commit()
    assert committed(one) == {("a", 0): 1, ("a", 1): 1}
    assert [row.status for row in one.rows(UNIT)] == ["failed"]


class Killed(BaseException):
    """Stands for the death of a worker."""


def die_at(patch: pytest.MonkeyPatch, step: int, is_done: bool) -> None:
    """Let a worker die before or after one of its writes to the store."""
    steps = itertools.count()

    def dying(operation: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            is_now = next(steps) == step
            if is_now and not is_done:
                raise Killed
            result = operation(*arguments)
            if is_now:
                raise Killed
            return result

        return called

    for name in ("put", "put_file", "put_if_absent", "remove"):
        patch.setattr(Bucket, name, dying(getattr(Bucket, name)))


def finish(run: InversionRun) -> None:
    """Do what is missing of the work unit."""
    known = {row.key for row in run.claim(UNIT)}
    missing = [key for key in ("a", "bb", "ccc") if key not in known]
    compute(run, *missing).commit()
    run.mark_complete(UNIT, CompleteMark(3, "state"))
    run.release(UNIT)


@pytest.mark.parametrize("is_done", [False, True])
def test_a_worker_may_die_at_any_write(worker: Start, bucket: str, is_done: bool, monkeypatch: pytest.MonkeyPatch):
    """Another worker does the whole unit before the dead one's disk is used again."""
    for step in range(20):
        run, other = worker("one", str(step)), worker("other", str(step))
        run.claim(UNIT)
        other.claim(UNIT)
        part = compute(run, "a", "bb")
        late = compute(other, "bb", "ccc")
        with monkeypatch.context() as patch:
            die_at(patch, step, is_done)
            try:
                part.commit()
                run.mark_complete(UNIT, CompleteMark(3, "state"))
                run.release(UNIT)
                is_dead = False
            except Killed:
                is_dead = True
        late.commit()
        other.release(UNIT)
        die(run)
        finish(again := worker("one", str(step)))
        assert committed(again) == {("a", 0): 1, ("bb", 0): 1, ("ccc", 0): 1}
        assert spooled(again) == []
        assert len(list(read_inversions(f"{bucket}/{step}"))) == 3
        if not is_dead:
            break
    assert step > 3


@pytest.mark.parametrize("answer", ["lost", "cut", 500, 503])
def test_every_put_may_be_answered_wrongly_at_first(
    worker: Start, s3_port: int, answer: str | int, monkeypatch: pytest.MonkeyPatch
):
    with proxy(s3_port) as between:
        use_endpoint(monkeypatch, between.port)
        seen = Counter[str]()

        def first_wrongly(method: str, path: str) -> str | int | None:
            seen[path] += method == "PUT"
            return answer if method == "PUT" and seen[path] == 1 else None

        between.rule = first_wrongly
        run = worker("one")
        finish(run)
    assert committed(run) == {("a", 0): 1, ("bb", 0): 1, ("ccc", 0): 1}
    assert run.complete_mark(UNIT) == CompleteMark(3, "state")


def test_a_run_is_continued_in_a_folder_and_again_in_a_store(worker: Start, bucket: str, tmp_path: Path):
    run = worker("one")
    run.claim(UNIT)
    compute(run, "a", failed="bad").commit()
    run.release(UNIT)
    worker("one", shards={"more": "/in/more.tar"})
    folder, store = tmp_path / "folder", Bucket(f"{bucket}/run")
    (folder / "inversions").mkdir(parents=True)
    for name in store.list("inversions"):
        store.download(f"inversions/{name}", folder / "inversions" / name)
    for name in ("run.json", "shards.00000.json"):
        store.download(name, folder / name)
    local = OutputRun.create(INVERT, folder, SETTINGS, SHARDS)
    assert local.shards == {**SHARDS, "more": "/in/more.tar"}
    moved = {"more": "/moved/more.tar"}
    assert OutputRun.create(INVERT, folder, SETTINGS, moved).shards == open_inversions(folder).shards == SHARDS | moved
    assert {row.key for row in local.claim(UNIT)} == {"a", "bad"}
    compute(local, "bb").commit()
    local.release(UNIT)
    assert sorted(stored.key for stored in read_inversions(folder)) == ["a", "bb"]
    back = Bucket(f"{bucket}/back")
    for path in folder.rglob("*.*"):
        if path.suffix != ".lock":
            back.put_file(path.relative_to(folder).as_posix(), path)
    again = worker("two", "back")
    assert {row.key for row in again.claim(UNIT)} == {"a", "bad", "bb"}
    compute(again, "ccc").commit()
    assert sorted(stored.key for stored in read_inversions(f"{bucket}/back")) == ["a", "bb", "ccc"]


def test_run_json_never_changes_and_other_settings_are_refused(worker: Start, bucket: str):
    worker("one")
    first = Bucket(f"{bucket}/run").read("run.json")
    for shards in ({"b": "/in/b.tar"}, {"c": "/in/c.tar"}, {"b": "/moved/b.tar"}, {"c": "/in/c.tar"}):
        worker("two", shards=shards)
    assert open_inversions(f"{bucket}/run").shards == {**SHARDS, "b": "/moved/b.tar", "c": "/in/c.tar"}
    assert Bucket(f"{bucket}/run").read("run.json") == first
    assert Bucket(f"{bucket}/run").read("shards.00003.json") is None
    with pytest.raises(ValueError, match="holds a run with other settings"):
        OutputRun.create(INVERT, f"{bucket}/run", dataclasses.replace(SETTINGS, num_steps=9), SHARDS)


def test_a_new_run_at_an_old_address_does_not_see_the_copy_of_the_old_one(
    worker: Start, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    finish(run := worker("one"))
    store = Bucket(f"{bucket}/run")
    for name in ("run.json", *(f"inversions/{name}" for name in store.list("inversions"))):
        store.remove(name)
    time.sleep(1.1)  # a store tells times in seconds
    again = worker("one")
    assert run.out != again.out
    assert again.claim(UNIT) == []


def test_two_starts_at_a_new_address_have_one_copy(worker: Start, bucket: str, tmp_path: Path):
    early = BucketFiles(f"{bucket}/run", str(tmp_path / "one"))
    first = worker("one")
    assert early.path("run.json").exists() and early.root == first.files.root


def test_a_run_that_is_copied_to_a_store_which_ignores_the_condition_is_refused(
    worker: Start, bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch
):
    worker("one")
    with proxy(s3_port) as between:
        use_endpoint(monkeypatch, between.port)
        between.rule = lambda method, path: "unconditional"
        with pytest.raises(ValueError, match="ignores the condition"):
            worker("other")


def test_a_commit_behind_manifests_that_were_removed_is_refused(worker: Start, bucket: str):
    run = worker("one")
    run.claim(UNIT)
    compute(run, "a").commit()
    part = compute(run, "bb")
    for name in Bucket(f"{bucket}/run").list("inversions"):
        Bucket(f"{bucket}/run").remove(f"inversions/{name}")
    with pytest.raises(OutputError, match=rf"^{bucket}/run/inversions/.*00000.jsonl was removed while a job works"):
        part.commit()
    die(run)
    finish(again := worker("one"))
    assert committed(again) == {("a", 0): 1, ("bb", 0): 1, ("ccc", 0): 1}


def test_a_copy_that_a_power_cut_has_emptied_is_made_again(worker: Start, bucket: str):
    finish(run := worker("one"))
    (copy,) = run.manifests(UNIT)
    put = copy.stat().st_mtime
    copy.write_bytes(b"")
    os.utime(copy, (put, put))
    assert committed(worker("one")) == {("a", 0): 1, ("bb", 0): 1, ("ccc", 0): 1}


def test_one_of_many_starts_claims_a_unit(worker: Start, bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 300.0)
    runs = [worker(f"disk-{number}") for number in range(8)]

    def claim(run: InversionRun) -> bool:
        try:
            run.claim(UNIT)
        except UnitInUseError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(claim, runs)) == 1


@pytest.mark.parametrize("is_replaced", [False, True])
def test_what_somebody_has_removed_from_a_store_is_computed_again(worker: Start, bucket: str, is_replaced: bool):
    """`nti-batch verify` says that a work unit without files is computed again; the copies of its manifests remain."""
    finish(run := worker("one"))
    store = Bucket(f"{bucket}/run")
    for name in list(store.list("inversions")):
        store.remove(f"inversions/{name}")
    die(run)
    if is_replaced:
        time.sleep(1.1)  # a store tells times in seconds
        other = worker("other")
        other.claim(UNIT)
        compute(other, "a").commit()
        other.release(UNIT)
    again = worker("one")
    assert [stored.key for stored in read_inversions(f"{bucket}/run")] == ["a"] * is_replaced
    assert [row.key for row in again.claim(UNIT)] == ["a"] * is_replaced
    again.release(UNIT)
    finish(again)
    assert committed(worker("third")) == {("a", 0): 1, ("bb", 0): 1, ("ccc", 0): 1}


def test_a_claimed_unit_is_passed_over_until_its_claim_is_old(
    worker: Start, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    one, other = worker("one"), worker("other")
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 300.0)
    # what a claim says of the time does not count: clocks of workers differ
    monkeypatch.setattr(claims, "whoami", lambda: {"host": "node-1", "process": 7, "since": "1999-01-01T00:00:00"})
    one.claim(UNIT)
    with pytest.raises(UnitInUseError, match=r"in use by another job \(host node-1, process 7, since 1999"):
        other.claim(UNIT)
    monkeypatch.setattr(claims, "CLAIM_SECONDS", -1.0)
    other.claim(UNIT)
    other.release(UNIT)
    one.release(UNIT)
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 300.0)
    other.claim(UNIT)


def test_the_claim_of_a_process_that_died_on_this_disk_does_not_count(worker: Start, monkeypatch: pytest.MonkeyPatch):
    one = worker("one")
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 300.0)
    one.claim(UNIT)
    again = worker("one")
    with pytest.raises(UnitInUseError):
        again.claim(UNIT)
    die(one)
    again.claim(UNIT)


def test_a_spool_that_cannot_be_made_is_named(bucket: str, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"copies of s3://.*/run cannot be made: .*'/.*file/spool'; give a job"):
        OutputRun.create(INVERT, f"{bucket}/run", SETTINGS, SHARDS, spool=str(tmp_path / "file" / "spool"))
