"""A job whose ranks are killed repeatedly loses no image, repeats none, and computes equal bits."""

import os
import random
import signal
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from helpers.forks import FORKS
from helpers.jobs import arguments, ids
from helpers.tiny import captioned, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.output.part import read_members

SEED = int(os.environ.get("SEED", "0"))
WORLD_SIZES = (1, 2, 3, 1)
IMAGES_A_KILL = 9
BYTES_AN_IMAGE = 10_000


def run_rank(argv: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run one rank of a job in the environment that a cluster sets."""
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(main(argv))


def start(argv: list[str], world_size: int, log: Path) -> list[BaseProcess]:
    """Start a job with a number of ranks."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    job: list[BaseProcess] = []
    for rank in range(world_size):
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world_size)}
        process = FORKS.Process(target=run_rank, args=([*argv, f"--trainer.devices={world_size}"], log, environment))
        process.start()
        job.append(process)
    return job


def wait_for(condition: object, job: list[BaseProcess]) -> None:
    """Wait until the condition is true or the job ends."""
    deadline = time.monotonic() + 120
    while not condition() and any(rank.is_alive() for rank in job):
        assert time.monotonic() < deadline, "the job makes no progress"
        time.sleep(0.01)


def finished(out: Path) -> dict[tuple[object, object], object]:
    """Read the time at which each image was finished, from all complete members, committed or not."""
    times: dict[tuple[object, object], object] = {}
    for path in sorted(out.glob("inversions/*.tar*")):
        try:
            for _, metadata in read_members(path):
                times.setdefault((metadata["shard"], metadata["key"]), metadata["finished"])
        except (ValueError, FileNotFoundError):
            continue
    return times


def written(out: Path) -> int:
    """Sum up the sizes of the parts."""
    try:
        return sum(path.stat().st_size for path in out.glob("inversions/*.tar*"))
    # the job renamed a file after the glob
    except FileNotFoundError:
        return written(out)


def write_shards(folder: Path, kills: int) -> str:
    """Write three shards with the same keys, and enough images for some kills."""
    for name in "abc":
        write_shard(folder / f"{name}.tar", captioned(IMAGES_A_KILL * kills // 3))
    return str(folder / "*.tar")


@pytest.mark.parametrize("kills", [9, pytest.param(51, marks=pytest.mark.long)])
def test_a_run_that_is_killed_repeatedly_ends_like_an_unbroken_one(
    tiny_model: Path, kills: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The batch size is 1, so that kills do not change the batches and the bits are equal."""
    out, log, dice = tmp_path / "out", tmp_path / "log", random.Random(SEED)
    shards = write_shards(tmp_path, kills)
    job_arguments = arguments(tiny_model, shards, out, "--model.batch_size=1", "--output.part_images=4")
    known: dict[tuple[object, object], object] = {}
    for kill in range(kills):
        job = start(job_arguments, WORLD_SIZES[kill % len(WORLD_SIZES)], log)
        enough = written(out) + dice.randint(0, 8) * BYTES_AN_IMAGE
        wait_for(lambda enough=enough: written(out) > enough, job)
        time.sleep(dice.uniform(0, 0.1))
        assert all(rank.is_alive() for rank in job), log.read_text()
        for rank in dice.sample(job, len(job)):
            rank.kill()
        for rank in job:
            rank.join()
        now = finished(out)
        assert known.items() <= now.items(), "a finished inversion is lost, or was computed again"
        known = now
    assert known, "every kill came before the first image was finished"
    assert main(job_arguments) == 0
    inversions = {(stored.shard, stored.key): stored for stored in read_inversions(out)}
    images = ids(out)
    assert len(images) == len(set(images)) == 3 * (IMAGES_A_KILL * kills // 3)
    assert known.items() <= {image: stored.metadata["finished"] for image, stored in inversions.items()}.items()
    assert main(["verify", str(out)]) == 0
    unbroken = tmp_path / "unbroken"
    assert main(arguments(tiny_model, shards, unbroken, "--model.batch_size=1")) == 0
    for stored in read_inversions(unbroken):
        other = inversions.pop((stored.shard, stored.key))
        assert torch.equal(stored.noise_latents, other.noise_latents)
        assert torch.equal(stored.null_embeddings, other.null_embeddings)
    assert not inversions
    with capsys.disabled():
        print(f"\n{kills} kills, {len(images)} images, {len(known)} of them finished before the last kill")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_job_commits_its_finished_images_after_a_signal(tiny_model: Path, tmp_path: Path, signum: int):
    out, log, shards = tmp_path / "out", tmp_path / "log", write_shards(tmp_path, 12)
    (job,) = start(arguments(tiny_model, shards, out), 1, log)
    wait_for(lambda: len(finished(out)) > 2, [job])
    assert job.pid is not None
    os.kill(job.pid, signum)
    job.join()
    assert job.exitcode == 75, log.read_text()
    assert len(ids(out)) > 2
    assert [p.name for p in out.glob("inversions/*") if p.suffix in (".tmp", ".lock")] == []
    assert "Traceback" not in log.read_text()
