"""The progress of a job on a terminal, in lines, and in Lightning's loggers."""

import csv
import importlib.util
import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import pytest
from helpers.jobs import arguments, rows, run_console, status_of
from helpers.tiny import captioned, write_mixed_shard, write_shard

from nti_batch.cli import main
from nti_batch.jobs import progress
from nti_batch.jobs.meter import RankTallies
from nti_batch.jobs.tally import Tally, Total
from nti_batch.phrases import format_duration


def on_terminal(arguments: list[str]) -> tuple[str, int]:
    """Run `nti-batch` on a terminal of 100 columns; return its output and exit code."""
    terminal, end = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm"}
    command = [sys.executable, "-m", "nti_batch", *arguments]
    shown = b""
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment) as job:
        os.close(end)
        # Linux raises this when the other end is closed
        with suppress(OSError):
            while chunk := os.read(terminal, 1 << 16):
                shown += chunk
        code = job.wait(timeout=60)
    os.close(terminal)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode()), code


def test_a_terminal_shows_a_bar_with_rate_failures_and_psnr(tiny_model: Path, tmp_path: Path):
    shown, code = on_terminal(arguments(tiny_model, write_mixed_shard(tmp_path / "s.tar"), tmp_path / "out"))
    assert code == 3, shown
    last = [line for line in re.split(r"[\r\n]+", shown) if line.startswith("images")][-1]
    done = [row for row in rows(tmp_path / "out").values() if row.status == "done"]
    psnr = sum(row.psnr or 0 for row in done) / len(done)
    assert re.search(rf"images 4/4 .*━.* [\d,]+/hour, {psnr:.2f} dB, 1 failed", last), last


def test_without_a_terminal_progress_is_a_line_a_minute(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shard = write_mixed_shard(tmp_path / "s.tar")
    assert main(arguments(tiny_model, shard, tmp_path / "quiet")) == 3
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    assert main(arguments(tiny_model, shard, tmp_path / "lines")) == 3
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"[1-4] of about 4 images, [\d,]+/hour,( [\d.]+ (s|min) left,)? [\d.]+ dB, 1 failed, "
        r"-?[\d.]+ dB below the VAE bound",
        lines[-1],
    )
    assert any("the first records are in progress" in line for line in lines)


def tally(done: int, failed: int, psnr: float) -> Tally:
    """Make a tally with the sum of the records' PSNR."""
    return Tally(done=done, failed=failed, totals={"psnr": Total(psnr, done)})


def test_the_tallies_of_all_ranks_add_up_without_missing_and_damaged_files(tmp_path: Path):
    tallies = RankTallies([tmp_path / f"rank-{rank}.json" for rank in range(6)])
    tallies.publish(1, tally(5, 1, 100.0))
    tallies.publish(3, tally(2, 0, 44.0))
    (tmp_path / "rank-2.json").write_text('{"done": 3')
    (tmp_path / "rank-4.json").write_text('{"done": 3, "failed": 1, "totals": {"psnr": 7}}')
    # a metric's name becomes a column of a logger
    forged = {"done": 3, "failed": 1, "totals": {"psnr\x1b[2J\n": [7.0, 1]}}
    (tmp_path / "rank-5.json").write_text(json.dumps(forged))
    assert tallies.sum(0, tally(1, 1, 20.0)) == tally(8, 2, 164.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.6, "3.6 s"), (2700, "45 min"), (5400, "1.5 h"), (47 * 3600, "47 h"), (168 * 3600, "7 days")],
)
def test_a_duration_is_formatted_in_its_largest_unit(seconds: float, text: str):
    assert format_duration(seconds) == text


def logged(folder: Path) -> dict[str, float]:
    """Read the last line of the file of CSVLogger."""
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}


def test_the_last_line_of_a_logger_has_the_numbers_of_status(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, flags = tmp_path / "out", ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'csv'}"]
    assert main([*arguments(tiny_model, write_mixed_shard(tmp_path / "s.tar"), out), *flags]) == 3
    numbers, last = status_of(out, capsys), logged(tmp_path / "csv")
    assert [last["done"], last["failed"], last["step"]] == [3, 1, 4]
    assert [last["done"], last["failed"]] == [numbers["done"], numbers["failed"]]
    assert last["psnr"] == pytest.approx(numbers["psnr"])
    assert last["psnr_below_vae"] == pytest.approx(numbers["psnr_vae"] - numbers["psnr"])
    assert last["images_per_hour"] > 0


def test_messages_name_their_rank_and_the_first_rank_logs_the_numbers_of_all(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    flags = ["--trainer.devices=2", "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'csv'}"]
    shard = write_shard(tmp_path / "s.tar", captioned(5))
    job = run_console([*arguments(tiny_model, shard, out), *flags, "--model.batch_size=auto"], timeout=600)
    assert job.returncode == 0, job.stderr
    for rank in (0, 1):
        assert f"[rank {rank}/2] nti-batch: model.batch_size: " in job.stderr
        log = (out / "log" / f"rank-{rank}.log").read_text()
        assert f"started rank={rank}/2" in log
        assert log.count(" INFO done s/") == sum(crc32(f"{n:03}".encode()) % 2 == rank for n in range(5))
    numbers, last = status_of(out, capsys), logged(tmp_path / "csv")
    assert [last["done"], last["step"], numbers["done"]] == [5, 5, 5]
    assert last["psnr"] == pytest.approx(numbers["psnr"])


@pytest.mark.parametrize(("logger", "package"), [("TensorBoardLogger", "tensorboard"), ("WandbLogger", "wandb")])
def test_a_logger_without_its_package_is_refused_with_the_command_to_install_it(
    tiny_model: Path, tmp_path: Path, logger: str, package: str, capsys: pytest.CaptureFixture[str]
):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    flags = [f"--trainer.logger={logger}", f"--trainer.logger.save_dir={tmp_path}"]
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main([*arguments(tiny_model, shard, tmp_path / "out"), *flags]) == 2
    captured = capsys.readouterr()
    assert f"pip install -U '{package}" in captured.err
    assert captured.err.count("\n") == 1


def test_progress_and_status_agree_on_the_rate_of_a_resumed_run(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, flags = tmp_path / "out", ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'csv'}"]
    job = arguments(tiny_model, write_shard(tmp_path / "s.tar", captioned(7)), out)
    assert main([*job, "--data.limit=6"]) == 0
    assert main([*job, *flags]) == 0
    rate = status_of(out, capsys)["images_per_hour"]
    assert logged(tmp_path / "csv")["images_per_hour"] == pytest.approx(rate, rel=0.1)
