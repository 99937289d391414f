"""Slurm cluster on loopback with real daemons, virtual nodes and fake GPUs; it needs neither root nor systemd."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
NEEDED = ("munged", "slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "scontrol", "scancel", "setpriv")

# WaitTime ends a step so many seconds after the end of its first task: the scripts must not depend on it.
# A requeued job also waits for cred_expire. Slurm loads cgroup/v1, which does nothing with these plugins.
# config_overrides lets nodes have more cores than the machine.
CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={folder}/taskprolog.sh
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,bf_continue,sched_interval=2
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
WaitTime=2
KillWait=30
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=normal Nodes=vn[1-3] Default=YES MaxTime=UNLIMITED PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=high Nodes=vn[1-3] MaxTime=UNLIMITED PriorityTier=10 PreemptMode=OFF State=UP
"""
NODE = (
    "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
    "CPUs=8 Sockets=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=64000 Gres=gpu:2 State=UNKNOWN"
)
# the names of the nodes do not resolve
TASK_PROLOG = "#!/bin/sh\necho export MASTER_ADDR=127.0.0.1\necho export GLOO_SOCKET_IFNAME=lo\n"


def missing() -> list[str]:
    """List the programs that are not installed."""
    return [name for name in NEEDED if shutil.which(name, path=SYSTEM_PATH) is None]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]
    finally:
        for held in sockets:
            held.close()


class Cluster:
    """Three nodes of eight cores and two GPUs, in the partitions `normal` and `high`, which preempts `normal`."""

    def __init__(self, folder: Path) -> None:
        """Write the configuration.

        Args:
            folder: Folder for the files of the daemons; its path must be short, since it has a socket.
        """
        self.folder = folder
        # munged requires that every user can reach its socket
        folder.chmod(0o755)
        self.environment = {**os.environ, "PATH": SYSTEM_PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        controller_port, *ports = _free_ports(4)
        self.nodes = {f"vn{i}": port for i, port in enumerate(ports, start=1)}
        nodes = "\n".join(NODE.format(name=name, port=port) for name, port in self.nodes.items())
        config = CONFIG.format(controller_port=controller_port, user=getpass.getuser(), folder=folder, nodes=nodes)
        (folder / "slurm.conf").write_text(config)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        # Slurm requires character devices, and does not open them
        (folder / "gres.conf").write_text(f"NodeName=vn[1-3] Name=gpu File={folder}/gpu[0-1]\n")
        for i in (0, 1):
            (folder / f"gpu{i}").symlink_to("/dev/null")
        for name in ("state", *self.nodes):
            (folder / name).mkdir()
        (folder / "taskprolog.sh").write_text(TASK_PROLOG)
        (folder / "taskprolog.sh").chmod(0o755)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)

    def start(self) -> None:
        """Start the daemons, and wait until the nodes can take jobs."""
        munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._launch("munged", "munged", "--foreground", *(f"--{k}={self.folder}/munge.{v}" for k, v in munge.items()))
        self._until_up((self.folder / "munge.socket").exists)
        self._launch("slurmctld", "slurmctld", "-D")
        step_daemon = shutil.which("slurmstepd", path=SYSTEM_PATH)
        for node in self.nodes:
            self._launch(node, "slurmd", "-D", "-N", node, "-d", str(step_daemon))
        idle = ("sinfo", "-h", "-p", "normal", "-t", "idle", "-o", "%D")
        self._until_up(lambda: self.run(*idle, check=False) == "3")

    def stop(self) -> None:
        """End jobs and daemons."""
        if len(self._daemons) > 1:
            subprocess.run(["scancel", "--user", getpass.getuser()], env=self.environment, check=False, timeout=30)
            self.until(lambda: not self.run("squeue", "-h", check=False), "the jobs' end")
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def submit(self, *arguments: str) -> str:
        """Submit a script with sbatch; return the id of the job."""
        return self.run("sbatch", "--parsable", *arguments)

    def show(self, job: str) -> dict[str, str]:
        """Return Slurm's fields of a job (`12`) or of a task of an array (`12_3`)."""
        return dict(field.partition("=")[::2] for field in self.run("scontrol", "show", "job", "-o", job).split())

    def wait_until_over(self, job: str) -> dict[str, str]:
        """Wait for the end of a job, through requeues; return its fields."""
        unfinished = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "PREEMPTED", "NODE_FAIL")
        self.until(lambda: self.show(job)["JobState"] not in unfinished, f"job {job}'s end")
        return self.show(job)

    def processes(self, job: str, rank: int) -> list[int]:
        """List the running processes of one task of a job, the oldest first."""
        variables = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode(), b"SLURM_STEP_ID=0"}
        processes = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if variables <= set((folder / "environ").read_bytes().split(b"\0")):
                    processes.append(int(folder.name))
            except OSError:
                continue
        return sorted(processes)

    @contextmanager
    def unreachable(self, node: str, tasks: Iterable[int]) -> Iterator[None]:
        """Freeze a node, which keeps its locks; at the end, kill its tasks and bring it back."""
        step_daemons = {int(Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[1]) for task in tasks}
        frozen = [self._daemons[node].pid, *step_daemons, *tasks]
        for process in frozen:
            os.kill(process, signal.SIGSTOP)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        try:
            yield
        finally:
            for process in frozen[1:]:
                os.kill(process, signal.SIGKILL)
            os.kill(frozen[0], signal.SIGCONT)
            self.run("scontrol", "update", f"NodeName={node}", "State=IDLE", check=False)

    def until(self, condition: Callable[[], bool], what: str, timeout: float = 240) -> None:
        """Wait for a condition; the limit allows for a busy machine."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} took more than {timeout} s; {self.run('squeue', '-t', 'all', check=False)}")
            time.sleep(0.1)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command of Slurm; return its output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def _until_up(self, condition: Callable[[], bool]) -> None:
        def is_up() -> bool:
            logs = [log.read_text()[-2000:] for log in sorted(self.folder.glob("*.log"))]
            assert all(daemon.poll() is None for daemon in self._daemons.values()), "\n".join(logs)
            return condition()

        self.until(is_up, "the daemons' start", timeout=60)

    def _launch(self, name: str, *command: str) -> None:
        """Start a daemon that ends with this process."""
        with open(self.folder / f"{name}.log", "wb") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
