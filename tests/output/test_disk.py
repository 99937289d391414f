"""Folders and files that vanish, fill up or become read-only during a job: the error names them, the rest stays."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.jobs import arguments, ids, rows
from helpers.tiny import captioned, write_shard

from nti_batch.cli import main
from nti_batch.output.inversions import InversionRun, open_inversions
from nti_batch.output.run_folder import OutputRun
from nti_batch.records import WorkUnit

KEYS = [f"{i:03}" for i in range(6)]


def mount(*options: str) -> None:
    """Mount a file system, or skip the test where this is not allowed."""
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", *options], capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 120 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=120k", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def after_first_unit(monkeypatch: pytest.MonkeyPatch, event: Callable[[], object]) -> None:
    """Call `event` when the first work unit is complete and released."""
    real, events = OutputRun.release, iter([event])

    def release(run: InversionRun, unit: WorkUnit) -> None:
        real(run, unit)
        next(events, lambda: None)()

    monkeypatch.setattr(OutputRun, "release", release)


def test_a_full_disk_ends_the_job_in_one_line_and_room_lets_it_continue(
    tiny_model: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard, out = write_shard(tmp_path / "s.tar", captioned(30)), small_disk / "out"
    job = arguments(tiny_model, shard, out, "--output.part_images=3")
    assert main(job) == 1
    captured = capsys.readouterr()
    assert "cannot be written: No space left on device; what is committed stays readable" in captured.err
    assert "Traceback" not in captured.err
    assert 0 < len(ids(out)) < 30
    before = rows(out)
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert main(job) == 0
    assert len(ids(out)) == 30
    assert before.items() <= rows(out).items()
    assert main(["verify", str(out)]) == 0


def test_a_disk_that_has_become_read_only_is_named_and_still_read(
    tiny_model: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in "st":
        write_shard(tmp_path / f"{name}.tar", captioned(2))
    out = small_disk / "out"
    assert main([*arguments(tiny_model, tmp_path / "s.tar", out), "--data.units_per_shard=1"]) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    capsys.readouterr()
    assert main([*arguments(tiny_model, tmp_path / "t.tar", out), "--data.units_per_shard=1"]) == 2
    assert f"output folder '{out}' cannot be written: Read-only file system" in capsys.readouterr().err
    (tmp_path / "s.tar").rename(tmp_path / "elsewhere.tar")
    assert main(["status", str(out)]) == 0
    assert len(ids(out)) == 2


def test_a_folder_that_is_removed_under_way_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shard, out = write_shard(tmp_path / "s.tar", captioned(4)), tmp_path / "out"
    after_first_unit(monkeypatch, lambda: shutil.rmtree(out))
    assert main(arguments(tiny_model, shard, out, "--model.batch_size=1")) == 1
    captured = capsys.readouterr()
    assert f"{out}/inversions/s.1of2.00000.tar cannot be written: No such file or directory" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(("gone", "left"), [("s", "stu"), ("u", "st")])
def test_a_shard_that_vanishes_fails_by_name_and_is_inverted_when_it_is_back(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str, left: str
):
    """It vanishes after the first shard; by then an image of the next shard is in flight, and none of the third."""
    monkeypatch.setattr("nti_batch.jobs.datamodule.ITEMS_AHEAD", 1)
    for name in "stu":
        write_shard(tmp_path / f"{name}.tar", captioned(6))
    shard, out = tmp_path / f"{gone}.tar", tmp_path / "out"
    job = arguments(tiny_model, f"{tmp_path}/[stu].tar", out, "--data.units_per_shard=1", "--model.batch_size=1")
    with monkeypatch.context() as patch:
        after_first_unit(patch, lambda: shard.rename(tmp_path / "elsewhere"))
        assert main(job) == (0 if gone in left else 3), "an image that was already read is not lost"
    assert ids(out) == [(name, key) for name in left for key in KEYS]
    if gone not in left:
        (row,) = open_inversions(out).rows(WorkUnit(gone, str(shard), 0, 1))
        assert "No such file or directory" in row.error
    (tmp_path / "elsewhere").rename(shard)
    assert main([*job, "--data.retry_failed=true"]) == 0
    assert len(ids(out)) == 18
