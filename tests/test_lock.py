"""A work unit has one living owner, which its lock names."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from zlib import crc32

import pytest
from helpers.jobs import arguments, ids
from helpers.tiny import captioned, write_shard

from nti_batch.cli import main
from nti_batch.lock import UnitInUseError, UnitLock

HOLD = "import sys, time; from pathlib import Path; from nti_batch.lock import UnitLock; "
HOLD += "lock = UnitLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def owner(tmp_path: Path):
    """A process of a Slurm job that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "s.0of2.lock")]
    environment = {**os.environ, "SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "0"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_error_names_the_owner(tmp_path: Path, owner: subprocess.Popen[str]):
    text = rf"'s.0of2' .* another job \(host .+, process {owner.pid}, Slurm job 4711, restarts 0, since 20.+\): "
    text += r".*--data\.part"
    with pytest.raises(UnitInUseError, match=text):
        UnitLock(tmp_path / "s.0of2.lock")
    UnitLock(tmp_path / "s.1of2.lock").release()


def test_a_dead_owner_holds_nothing(tmp_path: Path, owner: subprocess.Popen[str]):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    lock = UnitLock(tmp_path / "s.0of2.lock")
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_requeued_slurm_job_waits_for_its_earlier_start(
    tmp_path: Path, owner: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with monkeypatch.context() as patch, pytest.raises(UnitInUseError):
        patch.setattr("nti_batch.lock.LOCK_TIMEOUT", 0)
        UnitLock(tmp_path / "s.0of2.lock")
    killer = threading.Timer(1, owner.kill)
    killer.start()
    UnitLock(tmp_path / "s.0of2.lock").release()
    killer.join()


def test_a_second_job_stops_and_a_job_on_another_part_does_not(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard, out = write_shard(tmp_path / "s.tar", captioned(6)), tmp_path / "out"
    (out / "inversions").mkdir(parents=True)
    lock = UnitLock(out / "inversions" / "s.0of2.lock")
    keys = [f"{i:03}" for i in range(6)]
    assert main([*arguments(tiny_model, shard, out), "--data.part=1/2"]) == 0
    assert ids(out) == [("s", key) for key in keys if crc32(key.encode()) % 2 == 1]
    assert main(arguments(tiny_model, shard, out)) == 1
    assert f"process {os.getpid()}" in capsys.readouterr().err
    lock.release()
    assert main([*arguments(tiny_model, shard, out), "--data.part=0/2"]) == 0
    assert ids(out) == [("s", key) for key in keys]
    assert [p.name for p in (out / "inversions").iterdir() if p.suffix == ".lock"] == []
