"""A job whose output folder is in an object store, through the front door."""

import json
import os
import random
import sys
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from helpers.forks import FORKS
from helpers.jobs import arguments, expect_one_sentence
from helpers.object_store import proxy, use_endpoint
from helpers.tiny import captioned, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.jobs import units
from nti_batch.output import claims
from nti_batch.output.bucket import Bucket
from nti_batch.output.edits import open_edits, read_edited_images
from nti_batch.plans.missing_edits import EditPlan

FAULTS = 0.1
"""Share of the puts that are answered wrongly."""

ON_CPU = "--trainer.accelerator=cpu"


def shards(folder: Path, images: int) -> str:
    """Write two shards with the same keys."""
    for name in "ab":
        write_shard(folder / f"{name}.tar", captioned(images))
    return str(folder / "*.tar")


def ids(out: str) -> list[tuple[str, str]]:
    return sorted((stored.shard, stored.key) for stored in read_inversions(out))


def test_a_job_writes_to_a_store(tiny_model: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = f"{bucket}/some/run"
    job = arguments(tiny_model, shards(tmp_path, 3), Path("out"), f"--output.dir={out}", "--output.part_images=2")
    assert main([*job, "--dry_run"]) == 0
    assert f"to '{out}'; " in capsys.readouterr().out
    assert Bucket(out).read("run.json") is None
    assert main([*job, "--data.limit=3"]) == 0
    assert len(ids(out)) == 3
    assert main(job) == 0
    assert len(set(ids(out))) == len(ids(out)) == 6
    before = set(Bucket(out).list("inversions"))
    assert not [name for name in before if name.endswith((".claim", ".lock", ".tmp"))]
    assert main(job) == 0
    assert set(Bucket(out).list("inversions")) == before
    capsys.readouterr()
    assert main(["status", out, "--json", "--exit_code"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 6
    assert main(["verify", out]) == 0, capsys.readouterr().out
    Bucket(out).put("inversions/a.0of2.0123456789abcdef.tar", b"of a worker that died")
    assert main(["verify", out, "--remove_uncommitted=1"]) == 1
    assert "0123456789abcdef.tar: is named by no manifest" in capsys.readouterr().out
    time.sleep(1.1)  # a store tells times in seconds
    assert main(["verify", out, "--remove_uncommitted=0"]) == 0
    name = next(name for name in before if name.endswith(".tar"))
    Bucket(out).put(f"inversions/{name}", b"other bytes")
    assert main(["verify", out]) == 1
    assert f"{out}/inversions/{name} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("damaged", ["complete", "jsonl"])
def test_a_damaged_object_ends_a_job_in_one_sentence_and_no_tar_is_removed(
    tiny_model: Path, bucket: str, tmp_path: Path, damaged: str, capsys: pytest.CaptureFixture[str]
):
    out = f"{bucket}/run"
    job = arguments(tiny_model, shards(tmp_path, 2), Path("out"), f"--output.dir={out}", "--data.units_per_shard=1")
    assert main([*job, "--data.limit=1"]) == 0
    assert main(job) == 0
    objects = set(Bucket(out).list("inversions"))
    name = min(name for name in objects if name.endswith(damaged))
    Bucket(out).put(f"inversions/{name}", b"damage")
    for other in [each for each in objects if each.endswith(".complete") and each != name]:
        Bucket(out).remove(f"inversions/{other}")
    capsys.readouterr()
    assert main(job) == 1
    expect_one_sentence(f"{out}/inversions/{name}", "is damaged" if damaged == "jsonl" else "remove it", capsys=capsys)
    tars = {name for name in objects if name.endswith(".tar")}
    time.sleep(1.1)  # a store tells times in seconds
    assert main(["verify", out, "--remove_uncommitted=0"]) == 1
    assert tars <= set(Bucket(out).list("inversions"))


def test_edits_of_a_run_in_a_store_are_written_to_a_store(tiny_model: Path, bucket: str, tmp_path: Path):
    job = arguments(tiny_model, shards(tmp_path, 2), Path("out"), f"--output.dir={bucket}/inversions")
    assert main(job) == 0
    edit = ["edit", f"--data.inversions={bucket}/inversions", f"--output.dir={bucket}/edits", ON_CPU]
    assert main(edit) == 0
    tars = {name for name in Bucket(f"{bucket}/edits").list("edits") if name.endswith(".tar")}
    assert tars
    assert main(edit) == 0
    assert {name for name in Bucket(f"{bucket}/edits").list("edits") if name.endswith(".tar")} == tars
    assert main(["verify", f"{bucket}/edits"]) == 0
    run = open_edits(f"{bucket}/edits")
    units = EditPlan.of_run(run).units
    assert sum(len(list(read_edited_images(run, unit, [row.id for row in run.rows(unit)]))) for unit in units) == 4


def test_a_bucket_that_is_not_there_is_an_error_in_words(
    tiny_model: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    job = arguments(tiny_model, shards(tmp_path, 1), Path("out"), "--output.dir=s3://nowhere/run")
    assert main(job) == 2
    expect_one_sentence("s3://nowhere/run", "no such bucket", capsys=capsys)
    assert main(["status", f"{bucket}/nothing"]) == 2
    expect_one_sentence(f"'{bucket}/nothing' is no run", capsys=capsys)


def run_worker(argv: list[str], claim_seconds: float, hours: float, environment: dict[str, str]) -> None:
    """Run a job; claims count for that time, and its clock is that many hours fast."""
    os.environ.update(environment)
    clock = time.time
    time.time = lambda: clock() + 3600 * hours
    claims.CLAIM_SECONDS, claims.RENEWED_EVERY, units.WAIT_SECONDS = claim_seconds, 0.5, 0.5
    sys.exit(main(argv))


def start(argv: list[str], out: str, disk: Path, claim_seconds: float, hours: float = 0) -> BaseProcess:
    process = FORKS.Process(
        target=run_worker,
        args=([*argv, f"--output.dir={out}", f"--output.spool={disk}"], claim_seconds, hours, dict(os.environ)),
    )
    process.start()
    return process


def test_jobs_that_are_started_at_once_share_the_work(tiny_model: Path, bucket: str, tmp_path: Path):
    out = f"{bucket}/run"
    job = arguments(tiny_model, shards(tmp_path, 6), Path("out"), "--data.units_per_shard=3")
    workers = [start(job, out, tmp_path / f"disk-{number}", 60) for number in range(2)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(set(ids(out))) == len(ids(out)) == 12
    assert main(["verify", out]) == 0


def is_complete(out: str) -> bool:
    """Whether all four work units are marked as complete."""
    return sum(name.endswith(".complete") for name in Bucket(out).list("inversions")) == 4


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.long)])
def test_workers_on_the_same_units_that_are_killed_commit_each_image_once(
    tiny_model: Path,
    bucket: str,
    s3_port: int,
    tmp_path: Path,
    kills: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """No claim counts, so that all workers do the same work. Clocks differ by hours, and puts are answered wrongly."""
    out, dice, images = f"{bucket}/run", random.Random(kills), 6 if kills < 50 else 20 * kills
    job = arguments(tiny_model, shards(tmp_path, images), Path("out"), "--output.part_images=2")
    workers: list[BaseProcess] = []
    with proxy(s3_port) as between:
        answers = Counter[str | int]()

        def often_wrongly(method: str, path: str) -> str | int | None:
            if method != "PUT" or random.random() > FAULTS:
                return None
            answer: str | int = random.choice(("lost", "cut", 500, 503))
            answers[answer] += 1
            return answer

        between.rule = often_wrongly
        use_endpoint(monkeypatch, between.port)
        early = 0
        for kill in range(kills):
            while len(workers) < 1 + kill % (2 if kills < 50 else 4):
                hours = dice.uniform(-12, 12)
                workers.append(start(job, out, tmp_path / f"disk-{len(workers)}", -1, hours))
            time.sleep(dice.uniform(1, 5))
            early += not is_complete(out)
            workers[0].kill()
            workers.pop(0).join()
        for worker in workers:
            worker.kill()
            worker.join()
    use_endpoint(monkeypatch, s3_port)
    monkeypatch.setattr(claims, "CLAIM_SECONDS", -1.0)
    assert main([*job, f"--output.dir={out}", f"--output.spool={tmp_path / 'disk-0'}"]) == 0
    assert len(set(ids(out))) == len(ids(out)) == 2 * images
    assert main(["verify", out, "--remove_uncommitted=0"]) == 0
    with capsys.disabled():
        wrong = ", ".join(f"{number} {answer}" for answer, number in answers.items())
        print(f"\n{kills} kills, {early} of them before the last commit, {len(ids(out))} images; puts: {wrong}")
