"""Jobs in processes of their own, for a command that runs several: here, or as steps of Slurm's allocation."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from nti_batch.jobs.signals import StopSignals


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFlags:
    """Devices of the jobs, as for Lightning's Trainer. In an allocation of Slurm, its nodes and tasks count instead."""

    accelerator: str = "auto"
    """Kind of device, such as 'gpu' or 'cpu'; 'auto' takes a GPU if there is one."""

    devices: str = "auto"
    """Number of devices of a node; 'auto' takes all."""

    num_nodes: int = 1
    """Number of nodes."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """Nodes and tasks that Slurm has given to a batch script, for steps of all of them."""

    nodes: int
    tasks_per_node: int

    @classmethod
    def of_environment(cls) -> Self | None:
        """The allocation that this process is in; None outside of Slurm, or with a single task.

        Raises:
            ValueError: If this process is one of several tasks of a step.
        """
        nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
        per_node = int(os.environ.get("SLURM_NTASKS_PER_NODE", 1))
        tasks = int(os.environ.get("SLURM_NTASKS", nodes * per_node))
        if tasks == 1:
            return None
        # a batch script is the step 'batch' in the eyes of Slurm, and has no such number
        if os.environ.get("SLURM_STEP_ID", "").isdecimal():
            raise ValueError(
                f"the command is one of {tasks} tasks of srun, allowed: one process in the batch script, without "
                "srun; it starts srun for each of its jobs"
            )
        return cls(nodes, -(-tasks // nodes))

    @property
    def srun(self) -> list[str]:
        """Words in front of a command that every task runs."""
        cpus = os.environ.get("SLURM_CPUS_PER_TASK")
        tasks = [f"--nodes={self.nodes}", f"--ntasks-per-node={self.tasks_per_node}"]
        # srun does not take the number of cores from sbatch since Slurm 22.05
        tasks += [f"--cpus-per-task={cpus}"] if cpus else []
        return ["srun", "--label", "--kill-on-bad-exit=1", "--wait=0", *tasks]


def trainer_flags(flags: DeviceFlags, allocation: Allocation | None) -> list[str]:
    """Trainer flags of the jobs."""
    devices, nodes = flags.devices, flags.num_nodes
    if allocation:
        devices, nodes = str(allocation.tasks_per_node), allocation.nodes
    return [
        f"--trainer.accelerator={flags.accelerator}",
        f"--trainer.devices={devices}",
        f"--trainer.num_nodes={nodes}",
    ]


def run_job_process(arguments: Sequence[str], allocation: Allocation | None, stop: StopSignals) -> int:
    """Run `nti-batch` in a process of its own, or in every task of an allocation; return its exit code.

    A process has one job, since Lightning starts its other ranks with the command line of their process.

    Args:
        arguments: Command and flags of the job.
        allocation: Allocation that the job spreads over.
        stop: Stop signals, which the job gets. One that comes before the job handles signals kills it, and the code
            is negative.
    """
    command = [*(allocation.srun if allocation else []), sys.executable, "-m", "nti_batch", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as job:
        stop.forward_to([job])
        if stop.requested:
            job.terminate()
        try:
            return job.wait()
        except KeyboardInterrupt:
            # the terminal has sent the signal to the job, too, which commits what is finished
            job.wait()
            raise
        finally:
            stop.forward_to([])
