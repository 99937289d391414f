"""The batch scripts under a real Slurm: every way in which a job can end, and how it resumes."""

import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.jobs import arguments, ids
from helpers.pie_folder import write_pie_folder
from helpers.slurm_cluster import SYSTEM_PATH, Cluster, missing
from helpers.tiny import captioned, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.long,
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is not installed: no {', '.join(missing())}"),
]
SCRIPTS = Path(__file__).parents[2] / "slurm"
TESTS = Path(__file__).parents[1]
NOISE = ("Traceback", "Warning", "rror:")
"""Words that the log of a job without errors does not contain."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start the daemons in a folder with a short name."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder)
    cluster.environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), SYSTEM_PATH]),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "OMP_NUM_THREADS": "1",
    }
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


class Submitted:
    """Job on the cluster, in a working folder with a stale checkpoint of Lightning."""

    def __init__(self, cluster: Cluster, model: Path, folder: Path, shards: dict[str, int]) -> None:
        """Write the input shards.

        Args:
            cluster: Cluster that runs the job.
            model: Folder of the model.
            folder: Working folder of the job.
            shards: Number of images of each shard, by name.
        """
        self.cluster, self.folder, self.out = cluster, folder, folder / "out"
        self.log, self.hold = folder / "job.log", folder / "hold"
        self.stale = folder / "hpc_ckpt_1.ckpt"
        self.stale.write_text("Lightning would load it, and break")
        for name, count in shards.items():
            write_shard(folder / f"{name}.tar", captioned(count))
        self.ids = sorted((name, f"{i:03}") for name, count in shards.items() for i in range(count))
        self.flags = [
            argument
            for argument in arguments(model, folder / "*.tar", self.out)[1:]
            if not argument.startswith("--output.dir")
        ]

    def submit(self, script: str, *options: str) -> str:
        """Submit a shipped script with the options that a site would change; return the id of the job."""
        return self.cluster.submit(
            f"--chdir={self.folder}",
            f"--output={self.log}",
            "--cpus-per-task=1",
            *options,
            str(SCRIPTS / script),
            str(self.out),
            *self.flags,
            "--data.units_per_shard=1",
            "--trainer.callbacks+=helpers.hold.Hold",
            f"--trainer.callbacks.file={self.hold}",
        )

    def wait_for_hold(self, *ranks: int) -> None:
        """Wait until these ranks hold in the middle of their work."""
        held = [self.hold.with_name(f"hold.{rank}") for rank in ranks]
        self.cluster.until(lambda: all(file.exists() for file in held), f"{held}; {self.log_text()}")

    def release(self) -> None:
        """Let the job continue, now or after its next start."""
        for file in self.folder.glob("hold*"):
            file.unlink()

    def log_text(self) -> str:
        """Read the output of the job."""
        return self.log.read_text() if self.log.exists() else ""

    def check(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Check that every image is committed once, and that Lightning wrote no checkpoint."""
        assert ids(self.out) == self.ids
        assert main(["verify", str(self.out)]) == 0, capsys.readouterr().out
        assert main(["status", "--exit_code", str(self.out)]) == 0
        assert list(self.folder.rglob("*.ckpt")) == [self.stale]


@pytest.fixture
def job(cluster: Cluster, tiny_model: Path, tmp_path: Path) -> Submitted:
    """Write four shards of ten images; each rank holds after six images."""
    job = Submitted(cluster, tiny_model, tmp_path, dict.fromkeys("abcd", 10))
    job.hold.touch()
    return job


TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--time=30")


def test_ranks_that_finish_early_do_not_end_the_others(
    cluster: Cluster, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # rank 0, which hosts the rendezvous, finishes first; the WaitTime of the cluster is 2 seconds
    job = Submitted(cluster, tiny_model, tmp_path, {"a": 1, "b": 10, "c": 1, "d": 10})
    job.hold.touch()
    number = job.submit("invert.sbatch", *TWO_BY_TWO)
    job.wait_for_hold(1, 3)
    cluster.until(lambda: not cluster.processes(number, 0) and not cluster.processes(number, 2), "the early ranks' end")
    with pytest.raises(TimeoutError):
        cluster.until(lambda: not cluster.processes(number, 1), "more than WaitTime", timeout=4)
    job.release()
    state = cluster.wait_until_over(number)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "0"), job.log_text()
    assert state["TresPerNode"] == "gres:gpu:2"
    log = job.log_text()
    assert "22 done, 0 failed, 0 missing of 22 images" in log
    assert not any(word in log for word in NOISE), log
    job.check(capsys)


def test_the_time_limit_stops_the_ranks_and_the_job_is_requeued(
    job: Submitted, cluster: Cluster, capsys: pytest.CaptureFixture[str]
):
    number = job.submit("invert.sbatch", *TWO_BY_TWO)
    job.wait_for_hold(0, 1, 2, 3)
    cluster.run("scontrol", "update", f"JobId={number}", "TimeLimit=3")
    cluster.until(lambda: cluster.show(number)["Restarts"] == "1", "the requeue")
    assert 0 < len(list(read_inversions(job.out))) < 40
    job.release()
    cluster.run("scontrol", "update", f"JobId={number}", "TimeLimit=30")
    state = cluster.wait_until_over(number)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1"), job.log_text()
    log = job.log_text()
    assert log.count("stopped early") == 4
    assert "images are missing: requeued after 0 restarts" in log
    assert "40 done, 0 failed, 0 missing of 40 images" in log
    assert "Traceback" not in log
    job.check(capsys)


def test_a_preempted_job_resumes_after_the_job_of_higher_priority(
    job: Submitted, cluster: Cluster, capsys: pytest.CaptureFixture[str]
):
    number = job.submit("invert.sbatch", *TWO_BY_TWO, "--exclusive")
    job.wait_for_hold(0, 1, 2, 3)
    high = cluster.submit(
        "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", f"rm {job.hold}"
    )
    assert cluster.wait_until_over(high)["JobState"] == "COMPLETED"
    state = cluster.wait_until_over(number)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1"), job.log_text()
    log = job.log_text()
    assert "DUE TO PREEMPTION" in log
    assert log.count("stopped early") == 4
    assert "Traceback" not in log
    job.check(capsys)


def test_a_cancelled_job_is_not_requeued_and_the_same_command_resumes_it(
    job: Submitted, cluster: Cluster, capsys: pytest.CaptureFixture[str]
):
    number = job.submit("invert.sbatch", *TWO_BY_TWO)
    job.wait_for_hold(0, 1, 2, 3)
    cluster.run("scancel", number)
    state = cluster.wait_until_over(number)
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0")
    cluster.until(lambda: not any(cluster.processes(number, rank) for rank in range(4)), "the ranks' end")
    log = job.log_text()
    assert log.count("stopped early") == 4
    assert "Traceback" not in log
    assert 0 < len(list(read_inversions(job.out))) < 40
    job.release()
    assert cluster.wait_until_over(job.submit("invert.sbatch", *TWO_BY_TWO))["JobState"] == "COMPLETED"
    job.check(capsys)


def test_a_lost_node_loses_only_its_images_in_flight(
    job: Submitted, cluster: Cluster, capsys: pytest.CaptureFixture[str]
):
    number = job.submit("invert.sbatch", *TWO_BY_TWO)
    job.wait_for_hold(0, 1, 2, 3)
    assert cluster.show(number)["NodeList"] == "vn[1-2]"
    with cluster.unreachable("vn2", [cluster.processes(number, rank)[0] for rank in (2, 3)]):
        job.release()
        cluster.until(lambda: cluster.show(number)["NodeList"] == "vn[1,3]", "a start on other nodes")
        cluster.until(lambda: len(list(job.out.glob("inversions/*.complete"))) == 2, "the work of the other ranks")
    state = cluster.wait_until_over(number)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1"), job.log_text()
    assert "DUE TO NODE FAILURE" in job.log_text()
    assert "Traceback" not in job.log_text()
    job.check(capsys)


def test_a_killed_rank_ends_the_job_and_the_same_command_resumes_it(
    job: Submitted, cluster: Cluster, capsys: pytest.CaptureFixture[str]
):
    number = job.submit("invert.sbatch", *TWO_BY_TWO)
    job.wait_for_hold(0, 1, 2, 3)
    os.kill(cluster.processes(number, 2)[0], signal.SIGKILL)
    state = cluster.wait_until_over(number)
    assert (state["JobState"], state["Restarts"]) == ("FAILED", "0")
    assert "task 2: Killed" in job.log_text()
    job.release()
    assert cluster.wait_until_over(job.submit("invert.sbatch", *TWO_BY_TWO))["JobState"] == "COMPLETED"
    job.check(capsys)


def test_an_error_in_one_rank_ends_the_job_with_the_reason(
    job: Submitted, cluster: Cluster, capsys: pytest.CaptureFixture[str]
):
    (job.out / "inversions").mkdir(parents=True)
    with open(job.out / "inversions" / "d.0of1.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        number = job.submit("invert.sbatch", *TWO_BY_TWO)
        state = cluster.wait_until_over(number)
    assert (state["JobState"], state["Restarts"]) == ("FAILED", "0")
    assert "3: [rank 3/4] nti-batch: 'd.0of1' in" in job.log_text()
    assert "is in use by another job" in job.log_text()
    job.release()
    assert main(["invert", *job.flags, "--data.units_per_shard=1", f"--output.dir={job.out}"]) == 0
    job.check(capsys)


def test_a_task_of_an_array_is_requeued_without_the_others(
    job: Submitted, cluster: Cluster, capsys: pytest.CaptureFixture[str]
):
    logs = job.folder / "%a.log"
    number = job.submit("invert-array.sbatch", "--array=0-1", f"--output={logs}", "--time=30")
    job.log = job.folder / "1.log"
    job.wait_for_hold(0)
    last = f"{number}_1"
    cluster.until(lambda: len(list(job.out.glob("inversions/*.tar.tmp"))) == 2, "both tasks' first images")
    cluster.run("scancel", "--signal=USR1", last)
    cluster.until(lambda: cluster.show(last)["Restarts"] == "1", "the requeue")
    job.release()
    tasks = [cluster.wait_until_over(f"{number}_{i}") for i in (0, 1)]
    states = [(task["JobState"], task["ExitCode"], task["Restarts"]) for task in tasks]
    assert states == [("COMPLETED", "0:0", "0"), ("COMPLETED", "0:0", "1")], job.log_text()
    assert "stopped early: requeued after 0 restarts" in job.log_text()
    assert all("20 done, 0 failed, 0 missing of 20 images" in (job.folder / f"{i}.log").read_text() for i in (0, 1))
    job.check(capsys)


def test_the_jobs_of_pie_bench_are_steps_of_all_tasks_and_one_process_prints_the_table(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
):
    folder, out, log = write_pie_folder(tmp_path / "pie"), tmp_path / "out", tmp_path / "job.log"
    flags = [f"--model.name={tiny_model}", "--model.num_steps=2", "--methods", "ddim", "--trainer.accelerator=cpu"]
    number = cluster.submit(
        f"--output={log}",
        "--cpus-per-task=1",
        *TWO_BY_TWO,
        str(SCRIPTS / "pie-bench.sbatch"),
        str(folder),
        str(out),
        *flags,
    )
    assert cluster.wait_until_over(number)["JobState"] == "COMPLETED", log.read_text()
    assert log.read_text().count("| ddim | prompt-to-prompt | these runs | 3 |") == 1
    assert "2 x 2 tasks of Slurm" in (out / "pie-bench.md").read_text()
    for command in ("inversions", "edits"):
        assert len(list((out / "ddim" / command / "log").glob("rank-*.log"))) == 4
