"""A job as users see it: progress, the log, loggers, settings, completion, and `--dry_run`."""

import csv
import importlib.util
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.jobs import arguments, run_console
from helpers.tiny import captioned, png, write_shard
from safetensors import safe_open

from nti_batch.cli import main
from nti_batch.data.shards import work_units
from nti_batch.jobs import progress
from nti_batch.jobs.log import job_log, record_line
from nti_batch.jobs.meter import RankTallies
from nti_batch.jobs.tally import Tally, Total
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.inversions import open_inversions
from nti_batch.output.manifest_rows import InversionRow
from nti_batch.output.part import read_members
from nti_batch.phrases import format_duration
from nti_batch.records import Failure, WorkUnit


def rows(out: Path) -> list[InversionRow]:
    """Read the committed rows of shards that have two work units each."""
    run = open_inversions(out)
    return [row for unit in work_units(run.shards, 2) for row in run.rows(unit)]


def status(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    capsys.readouterr()
    assert main(["status", str(out), "--json"]) == 0
    numbers: dict[str, float] = json.loads(capsys.readouterr().out)
    return numbers


def mixed(path: Path) -> Path:
    """Write a shard of three images and one HTML page."""
    return write_shard(path, captioned(3) | {"html.png": b"<html>", "html.txt": b"a page"})


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """List every file and folder with its size and modification time."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


# --- the log ---


def test_the_log_has_a_line_for_each_row_and_a_second_run_appends(tiny_model: Path, tmp_path: Path):
    shard, out = mixed(tmp_path / "s.tar"), tmp_path / "out"
    job = arguments(tiny_model, shard, out)
    assert main(job) == 3
    log = out / "log" / "rank-0.log"
    first = log.read_text().splitlines()
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"
    assert all(re.match(rf"{time} INFO (started|ended|done|failed) ", line) for line in first)
    expected = set()
    for row in rows(out):
        if row.status == "failed":
            expected.add(f"failed s/html stage={row.stage} error={row.error}")
            continue
        assert row.psnr is not None and row.psnr_vae is not None and row.seconds is not None
        numbers = f"psnr={row.psnr:.2f} psnr_below_vae={row.psnr_vae - row.psnr:.2f} inner_steps={row.inner_steps}"
        expected.add(f"done s/{row.key} {numbers} seconds={row.seconds:.1f}")
    messages = [line.split(" INFO ")[1] for line in first]
    assert messages[0].startswith("started rank=0/1 host=")
    assert messages[-1] == "ended exit_code=3"
    assert len(messages) == 6
    assert set(messages[1:-1]) == expected
    assert main([*job, "--data.retry_failed=true"]) == 3
    again = log.read_text().splitlines()
    assert again[:6] == first
    assert [line.split()[2] for line in again[6:]] == ["started", "failed", "ended"]


def test_line_breaks_in_shard_key_or_error_do_not_break_a_line_of_the_log():
    unit = WorkUnit("my shard\n2026", "s.tar", 0, 1)
    line = record_line(Failure(unit, "a/b c\n", "image", "first\nsecond\u2028third", "no name\r"))
    assert line == "failed my%20shard%0A2026/a%2Fb%20c%0A+no%20name%0D stage=image error=first second third"


def test_a_log_that_cannot_be_written_is_reported_once_and_the_job_goes_on(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard, out = write_shard(tmp_path / "s.tar", captioned(3)), tmp_path / "out"
    out.mkdir()
    (out / "log").write_text("not a folder")
    assert main(arguments(tiny_model, shard, out)) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.search(r"rank-0.log cannot be written \(.*Not a directory.*\): the job runs without it", captured.err)


def test_the_log_writes_every_line_and_removes_its_handler(tmp_path: Path):
    with job_log(tmp_path / "log" / "rank-0.log", ""):
        for number in range(1000):
            logging.getLogger("nti_batch.test").info("line %d", number)
    assert len((tmp_path / "log" / "rank-0.log").read_text().splitlines()) == 1000
    assert logging.getLogger("nti_batch").handlers == []


# --- progress ---


def on_terminal(arguments: list[str]) -> tuple[str, int]:
    """Run `nti-batch` on a terminal of 100 columns; return its output and exit code."""
    terminal, end = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm"}
    command = [sys.executable, "-m", "nti_batch", *arguments]
    shown = b""
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment) as job:
        os.close(end)
        try:
            while chunk := os.read(terminal, 1 << 16):
                shown += chunk
        # Linux raises this when the other end is closed
        except OSError:
            pass
        code = job.wait(timeout=60)
    os.close(terminal)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode()), code


def test_a_terminal_shows_a_bar_with_rate_failures_and_psnr(tiny_model: Path, tmp_path: Path):
    shown, code = on_terminal(arguments(tiny_model, mixed(tmp_path / "s.tar"), tmp_path / "out"))
    assert code == 3, shown
    last = [line for line in re.split(r"[\r\n]+", shown) if line.startswith("images")][-1]
    done = [row for row in rows(tmp_path / "out") if row.status == "done"]
    psnr = sum(row.psnr or 0 for row in done) / len(done)
    assert re.search(rf"images 4/4 .*━.* [\d,]+/hour, {psnr:.2f} dB, 1 failed", last), last


def test_without_a_terminal_progress_is_a_line_a_minute(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shard = mixed(tmp_path / "s.tar")
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
    tallies = RankTallies([tmp_path / f"rank-{rank}.json" for rank in range(5)])
    tallies.publish(1, tally(5, 1, 100.0))
    tallies.publish(3, tally(2, 0, 44.0))
    (tmp_path / "rank-2.json").write_text('{"done": 3')
    (tmp_path / "rank-4.json").write_text('{"done": 3, "failed": 1, "totals": {"psnr": 7}}')
    assert tallies.sum(0, tally(1, 1, 20.0)) == tally(8, 2, 164.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.6, "3.6 s"), (2700, "45 min"), (5400, "1.5 h"), (47 * 3600, "47 h"), (168 * 3600, "7 days")],
)
def test_a_duration_is_formatted_in_its_largest_unit(seconds: float, text: str):
    assert format_duration(seconds) == text


# --- Lightning's loggers ---


def logged(folder: Path) -> dict[str, float]:
    """Read the last line of the file of CSVLogger."""
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}


def test_the_last_line_of_a_logger_has_the_numbers_of_status(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, flags = tmp_path / "out", ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'csv'}"]
    assert main([*arguments(tiny_model, mixed(tmp_path / "s.tar"), out), *flags]) == 3
    numbers, last = status(out, capsys), logged(tmp_path / "csv")
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
        assert log.count(" INFO done s/") == (3, 2)[rank]
    numbers, last = status(out, capsys), logged(tmp_path / "csv")
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


# --- settings ---


def printed_config(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main([*argv, "--print_config"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["invert", "--data.shards=demo", "--output.dir=o", "--model.solver=polyak", "--trainer.devices=2"],
        ["edit", "--data.inversions=i", "--output.dir=o", "--edit.kind=replace", "--model.batch_size=3"],
        ["bench", "--images=3", "--model.batch_size=2"],
    ],
)
def test_a_printed_config_sets_the_same_values(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = printed_config(argv, capsys)
    for flag in argv[1:]:
        name, _, value = flag.removeprefix("--").partition("=")
        setting = yaml.safe_load(config)
        for part in name.split("."):
            setting = setting[part]
        assert str(setting) == value
    (tmp_path / "job.yaml").write_text(config)
    assert printed_config([argv[0], f"--config={tmp_path / 'job.yaml'}"], capsys) == config


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the output of `nti-batch completion bash` to a file."""
    path = tmp_path_factory.mktemp("completion") / "nti-batch.bash"
    path.write_text(run_console(["completion", "bash"], timeout=600).stdout)
    return path


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("inv", "invert"),
        ("invert --data.sha", "--data.shards"),
        ("invert --dry", "--dry_run"),
        ("edit --data.inv", "--data.inversions"),
        ("edit --inv", "--inversions"),
        ("bench --output.sto", "--output.storage"),
        ("status --exit", "--exit_code"),
        ("completion z", "zsh"),
    ],
)
def test_bash_completes_commands_and_flags(bash_script: Path, words: str, completed: str):
    script = f"""
        source {bash_script}
        COMP_WORDS=(nti-batch {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        function=$(complete -p nti-batch | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
        "$function" nti-batch "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
        echo "${{COMPREPLY[@]}}"
    """
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert shell.stdout.split() == [completed], shell.stderr


def test_completion_without_its_package_is_refused_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 2
    assert "pip install 'nti-batch[completion]'" in capsys.readouterr().err


# --- the dry run ---


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the loading of weights an error."""

    def load(*_: object) -> None:
        raise AssertionError("weights are loaded")

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusion, "load", load)
        yield


@pytest.mark.usefixtures("no_weights")
def test_a_dry_run_prints_the_work_and_does_not_change_the_file_system(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", captioned(5))
    before = tree(tmp_path)
    job = arguments(
        tiny_model, tmp_path / "[ab].tar", tmp_path / "new" / "out", "--data.units_per_shard=3", "--dry_run"
    )
    assert main([*job, "--trainer.devices=2", "--trainer.num_nodes=2"]) == 0
    assert tree(tmp_path) == before
    captured = capsys.readouterr()
    assert "2 shards, 6 work units, 1 to 2 for each of 4 ranks" in captured.out
    assert "0 done and 0 failed are committed, about 10 left" in captured.out
    assert "time: unknown" in captured.out
    assert f"free in '{tmp_path}'" in captured.out
    assert captured.err == ""


def test_a_dry_run_of_an_unfinished_run_prints_the_remaining_work_and_its_rate(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    mixed(tmp_path / "a.tar")
    assert main(arguments(tiny_model, tmp_path / "a.tar", tmp_path / "out")) == 3
    write_shard(tmp_path / "b.tar", captioned(5))
    rate = status(tmp_path / "out", capsys)["images_per_hour"]
    before = tree(tmp_path)
    job = [*arguments(tiny_model, tmp_path / "[ab].tar", tmp_path / "out"), "--dry_run"]
    assert main(job) == 0
    printed = capsys.readouterr().out
    assert "3 done and 1 failed are committed, about 5 left" in printed
    assert f" at {rate:,.0f} images an hour so far" in printed
    stored = sum(part.stat().st_size for part in tmp_path.glob("out/inversions/*.tar"))
    assert f"{stored / 3 / 1000:.1f} kB for each of the images so far" in printed
    assert main([*job, "--data.retry_failed=true"]) == 0
    assert "3 done and 1 failed are committed, about 6 left" in capsys.readouterr().out
    assert tree(tmp_path) == before


@pytest.mark.parametrize("flags", [["--output.storage=float32"], ["--output.storage=float16", "--model.method=direct"]])
def test_a_dry_run_prints_the_size_of_the_tensors(
    tiny_model: Path, tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
):
    shard, out = write_shard(tmp_path / "s.tar", captioned(1)), tmp_path / "out"
    job = [*arguments(tiny_model, shard, out), *flags, "--data.width=24"]
    assert main([*job, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert main(job) == 0
    (part,) = out.glob("inversions/*.tar")
    ((payload, _),) = read_members(part)
    (tmp_path / "x.safetensors").write_bytes(payload)
    with safe_open(tmp_path / "x.safetensors", "pt") as tensors:
        stored = sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118  # no dict
    assert f"{stored / 1000:.1f} kB for each of the images in float" in printed


@pytest.mark.usefixtures("no_weights")
def test_a_dry_run_reads_no_remote_shard(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    job = arguments(tiny_model, f"pipe:touch {tmp_path}/read; cat s.tar", tmp_path / "out", "--data.allow_pipe=true")
    assert main([*job, "--dry_run"]) == 0
    assert "an unknown number left (a dry run reads no remote shard)" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flag",
    ["--model.num_steps=0", "--data.caption=xml", "--data.height=15", "--trainer.devices=x", "--output.dir=FILE/out"],
)
def test_a_dry_run_refuses_the_settings_that_the_job_refuses(
    tiny_model: Path, tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    job = [*arguments(tiny_model, shard, tmp_path / "out"), flag.replace("FILE", str(shard))]
    assert main([*job, "--dry_run"]) == 2
    refused = capsys.readouterr()
    assert main(job) == 2
    assert capsys.readouterr() == refused
    assert refused.err.startswith("nti-batch: ")


def test_a_dry_run_of_edits_counts_them_and_refuses_other_settings(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard = write_shard(tmp_path / "s.tar", {**captioned(4), "mute.png": png(9)})
    assert main(arguments(tiny_model, shard, tmp_path / "inverted")) == 3
    job = ["edit", f"--data.inversions={tmp_path / 'inverted'}", f"--output.dir={tmp_path / 'out'}"]
    job += ["--trainer.accelerator=cpu"]
    before = tree(tmp_path)
    capsys.readouterr()
    assert main([*job, "--dry_run"]) == 0
    assert "edits: 0 done and 0 failed are committed, about 4 left" in capsys.readouterr().out
    assert tree(tmp_path) == before
    assert main(job) == 0
    log = (tmp_path / "out" / "log" / "rank-0.log").read_text()
    assert len(re.findall(r" INFO done s/00\d\+reconstruction seconds=", log)) == 4
    assert main([*job, "--data.edit_prompt=a cat", "--dry_run"]) == 2
    assert 'data.edit_prompt: null there, "a cat" now' in capsys.readouterr().err
