"""What follows the last commit may fail, last too long or meet a signal: the exit code tells what is committed."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.jobs import arguments, ids
from helpers.tiny import captioned, write_shard
from lightning.pytorch.loggers import CSVLogger

from nti_batch.cli import main
from nti_batch.jobs import run
from nti_batch.jobs.courtesy import courtesy
from nti_batch.jobs.meter import RankTallies
from nti_batch.jobs.tally import Tally
from nti_batch.jobs.writer import RecordWriter
from nti_batch.report import preview


def wait_long() -> None:
    time.sleep(60)


def get_stopped() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    wait_long()


def fill_disk() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("drawing", "reason"),
    [
        (fill_disk, "(OSError: [Errno 28] No space left on device)"),
        (get_stopped, "(SIGTERM ended it)"),
        (wait_long, "(it takes more than 0.2 s)"),
    ],
)
def test_a_preview_that_cannot_be_made_is_one_warning_of_a_finished_job(
    drawing: Callable[[], None],
    reason: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    shard, out = write_shard(tmp_path / "s.tar", captioned(1)), tmp_path / "out"
    monkeypatch.setattr(run, "PREVIEW_SECONDS", 0.2)
    monkeypatch.setattr(preview, "draw_rows", lambda rows: drawing())
    # the networks are quick, but may take more than the time of this test's preview
    monkeypatch.setattr(preview, "examples_of", lambda *_, **__: drawing())
    assert main(arguments(tiny_model, shard, out)) == 0
    captured = capsys.readouterr()
    assert f"nti-batch: the preview is left out {reason}; what is committed does not depend on it\n" == captured.err
    assert "1 done, 0 failed, 0 missing of 1 images" in captured.out
    assert ids(out) == [("s", "000")]
    assert not list(out.glob("preview*"))


def test_signals_are_as_before_after_a_courtesy():
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    with courtesy("this", 0.01):
        wait_long()
    with courtesy("this", 60):
        pass
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("words", [4_000, 200_000])
def test_a_caption_of_any_length_is_drawn(words: int, tiny_model: Path, tmp_path: Path):
    members = {**captioned(1), "000.txt": b"word " * words}
    shard, out = write_shard(tmp_path / "s.tar", members), tmp_path / "out"
    assert main(arguments(tiny_model, shard, out)) == 0
    assert (out / "preview.png").exists()


def test_an_old_part_that_is_damaged_breaks_no_later_job(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_shard(tmp_path / "a.tar", captioned(2))
    out = tmp_path / "out"
    job = arguments(tiny_model, tmp_path / "*.tar", out, "--data.units_per_shard=1")
    assert main(job) == 0
    (part,) = (out / "inversions").glob("*.tar")
    part.write_bytes(b"damage")
    write_shard(tmp_path / "b.tar", captioned(1))
    assert main(job) == 0
    assert "3 done, 0 failed, 0 missing of 3 images" in capsys.readouterr().out


def test_a_logger_that_fails_is_one_warning(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for method in ("log_metrics", "finalize"):
        monkeypatch.setattr(CSVLogger, method, lambda *_, **__: fill_disk())
    shard, out = write_shard(tmp_path / "s.tar", captioned(1)), tmp_path / "out"
    more = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
    assert main(arguments(tiny_model, shard, out, *more)) == 0
    err = capsys.readouterr().err
    assert err == "nti-batch: CSVLogger fails ([Errno 28] No space left on device): the job continues without it\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 9,
        b"[" * 9_999,
        b'{"done": 1, "failed": 0, "totals": {"psnr": [1, 0]}}',
        b'{"done": 1, "failed": 0, "totals": {"psnr": [NaN, 1]}}',
        b'{"done": 1, "failed": 0, "totals": {"psnr": [1' + b"0" * 999 + b", 1]}}",
    ],
)
def test_damaged_numbers_of_another_rank_count_nothing(content: bytes, tmp_path: Path):
    tallies = RankTallies([tmp_path / "rank-0.json", tmp_path / "rank-1.json"])
    tallies.files[1].write_bytes(content)
    assert tallies.sum(0, Tally(done=3)) == Tally(done=3)


def test_the_output_folder_that_is_renamed_under_a_job_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shard, out = write_shard(tmp_path / "s.tar", captioned(2)), tmp_path / "out"
    real = RecordWriter.commit_all

    def renamed(writer: RecordWriter) -> None:
        if out.exists():
            shutil.move(out, tmp_path / "elsewhere")
        real(writer)

    monkeypatch.setattr(RecordWriter, "commit_all", renamed)
    monkeypatch.setattr(RecordWriter, "_finish", lambda writer, unit: None)
    assert main(arguments(tiny_model, shard, out, "--data.units_per_shard=1")) == 1
    err = capsys.readouterr().err
    assert f"{out}/inversions/s.0of1.00000.tar cannot be written: No such file or directory" in err
    assert "Traceback" not in err


def test_weights_that_are_cut_end_the_job_in_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    for part in ("unet", "text_encoder"):
        (weights,) = (model / part).glob("*.safetensors")
        whole = weights.read_bytes()
        weights.write_bytes(whole[:1000])
        assert main(arguments(model, shard, tmp_path / "out")) in (1, 2)
        err = capsys.readouterr().err
        assert err.startswith("nti-batch: ") and str(model) in err and err.count("\n") == 1
        weights.write_bytes(whole)
