"""Ranks are killed at any moment, again and again: nothing is lost, doubled, computed twice or different.

`KILLS=51 pytest tests/test_kills.py` kills more often.
"""

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

KILLS = int(os.environ.get("KILLS", "12"))
SEED = int(os.environ.get("SEED", "0"))
WORLD_SIZES = (1, 2, 3, 1)
IMAGES_A_KILL = 9
BYTES_AN_IMAGE = 10_000


def run_rank(argv: list[str], log: Path, environment: dict[str, str]) -> None:
    """One rank of a job, as a cluster would start it."""
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(main(argv))


def start(argv: list[str], world_size: int, log: Path) -> list[BaseProcess]:
    """A job of some ranks."""
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
    """Until it is true or the job has ended."""
    deadline = time.monotonic() + 120
    while not condition() and any(rank.is_alive() for rank in job):
        assert time.monotonic() < deadline, "the job does not get on"
        time.sleep(0.01)


def finished(out: Path) -> dict[tuple[object, object], object]:
    """When each image was finished, of all that is whole on disk, committed or not."""
    found: dict[tuple[object, object], object] = {}
    for path in sorted(out.glob("inversions/*.tar*")):
        try:
            for _, metadata in read_members(path):
                found.setdefault((metadata["shard"], metadata["key"]), metadata["finished"])
        except (ValueError, FileNotFoundError):
            continue
    return found


def written(out: Path) -> int:
    """Size of the parts."""
    try:
        return sum(path.stat().st_size for path in out.glob("inversions/*.tar*"))
    except FileNotFoundError:  # renamed just now
        return written(out)


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Three shards with the same keys."""
    for name in "abc":
        write_shard(tmp_path / f"{name}.tar", captioned(IMAGES_A_KILL * KILLS // 3))
    return str(tmp_path / "*.tar")


def test_killed_again_and_again_a_run_ends_as_if_nothing_had_been(
    tiny_model: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """One image in a call: so a batch is the same however often the job was broken, and so are the bits."""
    out, log, dice = tmp_path / "out", tmp_path / "log", random.Random(SEED)
    job_arguments = arguments(tiny_model, shards, out, "--model.batch_size=1", "--output.part_images=4")
    known: dict[tuple[object, object], object] = {}
    for kill in range(KILLS):
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
        assert known.items() <= now.items(), "a finished inversion is gone, or was computed again"
        known = now
    assert known, "the kills came before anything was finished"
    assert main(job_arguments) == 0
    found = {(stored.shard, stored.key): stored for stored in read_inversions(out)}
    images = ids(out)
    assert len(images) == len(set(images)) == 3 * (IMAGES_A_KILL * KILLS // 3)
    assert known.items() <= {image: stored.metadata["finished"] for image, stored in found.items()}.items()
    assert main(["verify", str(out)]) == 0
    unbroken = tmp_path / "unbroken"
    assert main(arguments(tiny_model, shards, unbroken, "--model.batch_size=1")) == 0
    for stored in read_inversions(unbroken):
        other = found.pop((stored.shard, stored.key))
        assert torch.equal(stored.noise_latents, other.noise_latents)
        assert torch.equal(stored.null_embeddings, other.null_embeddings)
    assert not found
    with capsys.disabled():
        print(
            f"\n{KILLS} kills of {len(images)} images, {len(known)} finished before the last one: all once, equal bits"
        )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_commits_what_is_finished(tiny_model: Path, shards: str, tmp_path: Path, signum: int):
    out, log = tmp_path / "out", tmp_path / "log"
    (job,) = start(arguments(tiny_model, shards, out), 1, log)
    wait_for(lambda: len(finished(out)) > 2, [job])
    assert job.pid is not None
    os.kill(job.pid, signum)
    job.join()
    assert job.exitcode == 75, log.read_text()
    assert len(ids(out)) > 2
    assert [p.name for p in out.glob("inversions/*") if p.suffix in (".tmp", ".lock")] == []
    assert "Traceback" not in log.read_text()
