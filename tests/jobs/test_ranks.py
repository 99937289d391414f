"""Ranks share the work, and signals, kills and errors end a job as they should."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.jobs import arguments, held_job, ids, run_console, wait_for
from helpers.tiny import captioned, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.lock import UnitLock


def test_two_ranks_share_an_odd_number_of_images(tiny_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "s.tar", captioned(5))
    job = run_console(arguments(tiny_model, shard, tmp_path / "out", "--trainer.devices=2"))
    assert job.returncode == 0, job.stderr
    assert ids(tmp_path / "out") == [("s", f"{i:03}") for i in range(5)]
    assert "5 done, 0 failed, 0 missing of 5 images" in job.stdout


def test_a_rank_may_have_no_work(tiny_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "s.tar", captioned(2))
    job = run_console(arguments(tiny_model, shard, tmp_path / "out", "--trainer.devices=2", "--data.units_per_shard=1"))
    assert job.returncode == 0, job.stderr
    assert ids(tmp_path / "out") == [("s", "000"), ("s", "001")]


def test_a_stopped_job_commits_its_finished_images_and_resumes_with_more_ranks(tiny_model: Path, tmp_path: Path):
    shard, out = write_shard(tmp_path / "s.tar", captioned(300)), tmp_path / "out"
    command = [sys.executable, "-m", "nti_batch", *arguments(tiny_model, shard, out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 120
        while not list(out.glob("inversions/*.tar.tmp")) and time.monotonic() < deadline:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        _, stderr = job.communicate(timeout=60)
    assert job.returncode == 75, stderr
    assert "run the same command again" in stderr
    committed = {(stored.shard, stored.key): stored.metadata["finished"] for stored in read_inversions(out)}
    assert 0 < len(committed) < 300
    assert main(["status", str(out), "--exit_code"]) == 75
    assert main(["status", str(out)]) == 0
    again = run_console(arguments(tiny_model, shard, out, "--trainer.devices=2"))
    assert again.returncode == 0, again.stderr
    final = {(stored.shard, stored.key): stored.metadata["finished"] for stored in read_inversions(out)}
    assert len(final) == 300
    assert committed.items() <= final.items(), "no finished image is computed again"


def test_a_killed_job_loses_only_the_images_in_flight(tiny_model: Path, tmp_path: Path):
    shard, out = write_shard(tmp_path / "s.tar", captioned(40)), tmp_path / "out"
    command = [sys.executable, "-m", "nti_batch", *arguments(tiny_model, shard, out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as job:
        deadline = time.monotonic() + 120
        while sum(p.stat().st_size for p in out.glob("inversions/*.tar.tmp")) < 40_000 and time.monotonic() < deadline:
            time.sleep(0.02)
        job.kill()
    assert list(read_inversions(out)) == []
    killed = time.time()
    assert main(arguments(tiny_model, shard, out)) == 0
    inversions = list(read_inversions(out))
    assert [len(inversions), len({stored.key for stored in inversions})] == [40, 40]
    assert sum(stored.metadata["finished"] < killed for stored in inversions) >= 4


def test_a_signal_during_the_loading_of_the_weights_stops_the_job(tiny_model: Path, tmp_path: Path):
    shard, out, hold = write_shard(tmp_path / "s.tar", captioned(20)), tmp_path / "out", tmp_path / "hold"
    with held_job(arguments(tiny_model, shard, out), hold) as job:
        wait_for(out / "run.json")
        job.send_signal(signal.SIGUSR1)
        _, stderr = job.communicate(timeout=120)
    assert job.returncode == 75, stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "hold.0").exists()


def test_a_finished_rank_waits_for_the_others_and_forwards_signals(tiny_model: Path, tmp_path: Path):
    write_shard(tmp_path / "a.tar", captioned(1))
    write_shard(tmp_path / "b.tar", captioned(10))
    out, hold = tmp_path / "out", tmp_path / "hold"
    flags = ["--trainer.devices=2", "--data.units_per_shard=1"]
    with held_job([*arguments(tiny_model, tmp_path / "*.tar", out), *flags], hold) as job:
        wait_for(tmp_path / "hold.1")
        wait_for(out / "inversions" / "a.0of1.complete")
        time.sleep(1)
        job.send_signal(signal.SIGTERM)
        _, stderr = job.communicate(timeout=120)
    assert job.returncode == 75, stderr
    assert "[rank 1/2] nti-batch: stopped early" in stderr
    assert "Traceback" not in stderr
    assert main([*arguments(tiny_model, tmp_path / "*.tar", out), "--data.units_per_shard=1"]) == 0
    assert ids(out) == [("a", "000"), *(("b", f"{i:03}") for i in range(10))]


def test_an_error_in_one_rank_ends_the_job_with_the_reason(tiny_model: Path, tmp_path: Path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", captioned(10))
    out, hold = tmp_path / "out", tmp_path / "hold"
    (out / "inversions").mkdir(parents=True)
    lock = UnitLock(out / "inversions" / "b.0of1.lock")
    flags = ["--trainer.devices=2", "--data.units_per_shard=1"]
    with held_job([*arguments(tiny_model, tmp_path / "*.tar", out), *flags], hold) as job:
        _, stderr = job.communicate(timeout=120)
    lock.release()
    assert job.returncode not in (0, 3, 75)
    assert "'b.0of1' in" in stderr
    assert "is in use by another job" in stderr


def test_a_killed_rank_ends_the_job(tiny_model: Path, tmp_path: Path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", captioned(10))
    out, hold = tmp_path / "out", tmp_path / "hold"
    flags = ["--trainer.devices=2", "--data.units_per_shard=1"]
    with held_job([*arguments(tiny_model, tmp_path / "*.tar", out), *flags], hold) as job:
        wait_for(tmp_path / "hold.0")
        wait_for(tmp_path / "hold.1")
        owner = json.loads((out / "inversions" / "b.0of1.lock").read_text())
        os.kill(owner["process"], signal.SIGKILL)
        _, stderr = job.communicate(timeout=120)
    assert job.returncode not in (0, 3, 75)
    assert "terminated with code -9" in stderr
