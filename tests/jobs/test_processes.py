"""Jobs in processes of their own: on one machine, or as steps of an allocation of Slurm."""

import signal

import pytest

from nti_batch.jobs.processes import Allocation, DeviceFlags, run_job_process, trainer_flags
from nti_batch.jobs.signals import StopSignals


@pytest.fixture(autouse=True)
def outside_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of a cluster on which the tests may run."""
    for name in ("JOB_NUM_NODES", "NTASKS", "NTASKS_PER_NODE", "STEP_ID", "CPUS_PER_TASK"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)


@pytest.mark.parametrize(
    ("variables", "allocation"),
    [
        ({}, None),
        ({"JOB_NUM_NODES": "1", "NTASKS": "1"}, None),
        ({"JOB_NUM_NODES": "1", "NTASKS": "1", "STEP_ID": "0"}, None),
        ({"JOB_NUM_NODES": "2", "NTASKS_PER_NODE": "4"}, Allocation(2, 4)),
        ({"JOB_NUM_NODES": "2", "NTASKS": "8", "NTASKS_PER_NODE": "4"}, Allocation(2, 4)),
        ({"JOB_NUM_NODES": "2", "NTASKS": "8"}, Allocation(2, 4)),
        ({"JOB_NUM_NODES": "1", "NTASKS": "4", "STEP_ID": "batch"}, Allocation(1, 4)),
    ],
)
def test_a_batch_script_has_the_nodes_and_tasks_of_its_allocation(
    variables: dict[str, str], allocation: Allocation | None, monkeypatch: pytest.MonkeyPatch
):
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert Allocation.of_environment() == allocation


def test_every_task_of_the_allocation_is_a_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    allocation = Allocation(2, 4)
    assert {"--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=6"} <= set(allocation.srun)
    flags = trainer_flags(DeviceFlags(devices="1"), allocation)
    assert flags == ["--trainer.accelerator=auto", "--trainer.devices=4", "--trainer.num_nodes=2"]


def test_without_slurm_the_devices_are_the_users():
    flags = trainer_flags(DeviceFlags(accelerator="cpu", devices="2"), None)
    assert flags == ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.num_nodes=1"]


def test_a_stop_before_the_job_handles_signals_ends_it():
    stop = StopSignals()
    stop.request()
    assert run_job_process(["env"], None, stop) == -signal.SIGTERM
