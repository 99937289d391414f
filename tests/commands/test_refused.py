"""What cannot work is refused in one line before anything is computed or written."""

import errno
import fcntl
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.jobs import arguments
from helpers.tiny import captioned, write_shard

from nti_batch.cli import main
from nti_batch.commands import edit as edit_command
from nti_batch.commands import report as report_command
from nti_batch.lock import UnitLock


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one image."""
    folder = tmp_path_factory.mktemp("refused")
    write_shard(folder / "s.tar", captioned(1))
    assert main(arguments(tiny_model, folder / "s.tar", folder / "out")) == 0
    return folder / "out"


IN_A_STORE = [
    "invert --data.shards=demo --output.dir={}",
    "edit --data.inversions=run --output.dir={}",
    "status {}",
    "verify {}",
    "edit --inversions={} --key=000 --output=x.png",
    "export {} --output=folder",
    "report {}",
    "score {}",
    "app {}",
]
"""Commands that take a run in an object store."""

IN_A_FOLDER = [
    "edit --inversions=run --key=000 --output={}.png",
    "export run --output={}",
    "pack folder {}",
    "report run --output={}",
]


@pytest.fixture
def computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if an image is edited, or a page is made."""
    for module, name in ((edit_command, "edit_image"), (report_command, "run_page")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("this is too late"))


@pytest.mark.parametrize(
    ("command", "scheme"),
    [
        *itertools.product(IN_A_STORE, ["HTTPS", "file"]),
        *itertools.product(IN_A_FOLDER, ["s3", "gs", "HTTPS", "file"]),
    ],
)
def test_an_address_on_the_network_is_no_folder(
    command: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(command.format(f"{scheme}://bucket/a").split()) == 2
    err = capsys.readouterr().err
    assert f"'{scheme}://bucket/a" in err and "a local path" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (
            "invert --data.shards=demo --output.dir=s3://b/run --output.spool=s3://b/spool",
            "output.spool is 's3://b/spool'",
        ),
        (
            "verify run --remove_uncommitted=1",
            "--remove_uncommitted is 1 for 'run', allowed: at least 0 hours, for a run",
        ),
        (
            "verify s3://b/run --remove_uncommitted=-1",
            "--remove_uncommitted is -1 for 's3://b/run', allowed: at least 0",
        ),
    ],
)
def test_what_is_for_object_stores_alone_is_refused_elsewhere(
    command: str, text: str, capsys: pytest.CaptureFixture[str]
):
    assert main(command.split()) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing/x.png", ".", "x" * 253 + ".png", "x.txt", "x"])
@pytest.mark.usefixtures("computes_nothing")
def test_an_edit_that_cannot_be_written_is_not_computed(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["edit", f"--inversions={run}", "--key=000", f"--output={tmp_path / name}"]) == 2
    assert "--output" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/x.html", ".", "x" * 300])
@pytest.mark.usefixtures("computes_nothing")
def test_a_page_that_cannot_be_written_is_not_made(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["report", str(run), f"--output={tmp_path / name}"]) == 2
    assert "give another --output" in capsys.readouterr().err


def test_a_second_export_into_a_folder_stops(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "exported"
    folder.mkdir()
    lock = UnitLock(folder / "export.lock")
    assert main(["export", str(run), "--output", str(folder)]) == 1
    assert f"output folder '{folder}' is in use by another job" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["export.lock"]
    lock.release()
    assert main(["export", str(run), "--output", str(folder)]) == 0
    assert [path.name for path in folder.iterdir()] == ["s"]


def test_a_file_system_without_locks_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert "cannot be locked: No locks available: the file system does not support flock(2)" in err
    assert "make room" not in err and err.count("\n") == 1


def test_a_shard_name_that_leaves_no_room_for_the_names_of_parts_is_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard = write_shard(tmp_path / f"{'x' * 240}.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "out")) == 2
    assert "cannot be that of output files, allowed: 216 bytes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    shard = write_shard(tmp_path / f"{'x' * 216}.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "out")) == 0


def test_a_long_command_is_a_shard(tiny_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    command = f"pipe:cat {shard} # {'x' * 5_000}"
    assert main(arguments(tiny_model, command, tmp_path / "out", "--data.allow_pipe=true")) == 0


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"[1]\n", b"text\n", b"\xff\xfe\0"])
@pytest.mark.parametrize("command", ["invert", "edit", "bench"])
def test_a_yaml_file_without_flags_is_named(
    command: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = tmp_path / "job.yaml"
    config.write_bytes(content)
    assert main([command, f"--config={config}"]) == 2
    err = capsys.readouterr().err
    assert f"--config '{config}'" in err and "allowed: a YAML file with flags" in err


def test_a_variable_of_slurm_that_lightning_refuses_is_one_line(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "x"}.items():
        monkeypatch.setenv(name, value)
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "out")) == 2
    assert "--ntasks-per-node" in capsys.readouterr().err


def test_commands_without_a_model_load_no_networks(run: Path, tmp_path: Path):
    commands = [["status"], ["verify"], ["export", "--output", str(tmp_path / "x")], ["report", "--images=0"]]
    script = f"""import sys
from nti_batch.cli import main
for name, *more in {commands!r}:
    assert main([name, {str(run)!r}, *more]) == 0
print([m for m in sys.modules if m.endswith((".unet_2d_condition", ".autoencoder_kl", ".modeling_clip"))])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_damaged_row_is_named(run: Path, tmp_path: Path):
    """A row dated after the year 9999, before 1970 or never; a number that is none."""
    from nti_batch.output.manifest_rows import InversionRow

    (row,) = (json.loads(line) for line in next((run / "inversions").glob("*.jsonl")).read_text().splitlines()[:1])
    assert InversionRow.from_json(row).finished == row["finished"]
    wrong = [("finished", t) for t in (253_402_300_800, -1, float("nan"), float("inf"), 10**400)]
    wrong += [("seconds", -1.0), ("seconds", 1e300), ("psnr", float("nan")), ("inner_steps", 10**400)]
    for name, value in wrong:
        with pytest.raises(ValueError, match=f"{name} of a row is"):
            InversionRow.from_json({**row, name: value})
