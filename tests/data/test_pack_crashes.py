"""Packs that crash, stop or meet a full disk: the next one gives the shards of an unbroken one."""

import os
import re
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers.crashes import CRASHED, Crash, Moment
from helpers.forks import FORKS
from helpers.pack import pack, shards, write_folder

from nti_batch import files
from nti_batch.data import image_list
from nti_batch.data.folder import read_file


def crash_in_pack(source: Path, out: Path, step: int, moment: Moment) -> None:
    """Pack until the crash."""
    crash = Crash(step, moment)
    files.open = crash.open  # type: ignore[attr-defined]
    # a process that dies loses nothing that the system has; a real sync of a busy disk takes long
    os.fsync, os.replace = crash.in_call(lambda handle: None), crash.in_call(os.replace)
    os._exit(pack(source, out, "--workers=1"))


@pytest.mark.parametrize("moment", ["half", "after"])
def test_a_crash_at_any_step_leaves_whole_shards_and_the_next_pack_finishes_the_rest(
    tmp_path: Path, moment: Moment, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    source = write_folder(tmp_path / "source", ("a", "b", "c", "d"))
    assert pack(source, tmp_path / "whole") == 0
    whole = shards(tmp_path / "whole")
    for step in range(100):
        out = tmp_path / f"out-{step}"
        process = FORKS.Process(target=crash_in_pack, args=(source, out, step, moment))
        process.start()
        process.join()
        finished = {path.name: path.read_bytes() for path in out.glob("*.tar")}
        assert finished.items() <= whole.items()
        assert pack(source, out) == 0
        assert shards(out) == whole
        if process.exitcode == 0:
            break
        assert process.exitcode == CRASHED
    assert step > 20, "the crash never came"


def written(out: Path) -> int:
    """Count the bytes of all tars."""
    try:
        return sum(path.stat().st_size for path in out.glob("*.tar*"))
    except FileNotFoundError:  # renamed just now
        return written(out)


def test_a_pack_that_is_killed_several_times_gives_the_shards_of_an_unbroken_one(tmp_path: Path):
    source, out = write_folder(tmp_path / "source", tuple(f"{n:03}" for n in range(200))), tmp_path / "out"
    assert pack(source, tmp_path / "whole") == 0
    total, kills = written(tmp_path / "whole"), 0
    known: dict[str, int] = {}
    for share in (0.02, 0.3, 0.5, 0.8):
        process = FORKS.Process(target=pack, args=(source, out))
        process.start()
        while process.is_alive() and written(out) < share * total:
            time.sleep(0.001)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        now = {path.name: path.stat().st_mtime_ns for path in out.glob("*_stats.json")}
        assert known.items() <= now.items(), "a finished shard was packed again"
        known = now
    assert kills, "the kills came too late"
    assert pack(source, out) == 0
    assert shards(out) == shards(tmp_path / "whole")


def test_a_signal_stops_the_pack_and_the_next_one_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source, out = write_folder(tmp_path / "source", tuple("abcdefgh")), tmp_path / "out"
    assert pack(source, tmp_path / "whole") == 0

    def signalled(path: str, most: int) -> bytes:
        if path.endswith("e.png"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return read_file(path, most)

    with monkeypatch.context() as patch:
        patch.setattr(image_list, "read_file", signalled)
        assert pack(source, out, "--workers=1") == 75
    assert "stopped early; run the same command again" in capsys.readouterr().err
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["00000.tar"]
    assert pack(source, out) == 0
    assert shards(out) == shards(tmp_path / "whole")


def pack_on_a_full_disk(source: Path, out: Path, log: Path) -> None:
    """Pack where no file may be longer than 3,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    with log.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 2)
        sys.exit(pack(source, out))


def test_a_full_disk_ends_the_pack_in_one_line_and_the_next_one_continues_it(tmp_path: Path):
    source, out, log = write_folder(tmp_path / "source", tuple("abcd")), tmp_path / "out", tmp_path / "log"
    process = FORKS.Process(target=pack_on_a_full_disk, args=(source, out, log))
    process.start()
    process.join()
    said = log.read_text()
    assert process.exitcode == 1, said
    assert re.fullmatch(r"nti-batch: .+00000\.tar cannot be written: File too large; .+ again\n", said)
    assert list(out.glob("*.tar")) == []
    assert pack(source, out) == 0
    assert pack(source, tmp_path / "whole") == 0
    assert shards(out) == shards(tmp_path / "whole")
