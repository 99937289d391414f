"""The log of a rank: a line for each row, whatever happens."""

import logging
import re
from pathlib import Path

import pytest
from helpers.jobs import arguments, rows
from helpers.tiny import captioned, png, write_mixed_shard, write_shard

from nti_batch.cli import main
from nti_batch.jobs.log import job_log, record_line
from nti_batch.records import Failure, WorkUnit


def test_the_log_has_a_line_for_each_row_and_a_second_run_appends(tiny_model: Path, tmp_path: Path):
    shard, out = write_mixed_shard(tmp_path / "s.tar"), tmp_path / "out"
    job = arguments(tiny_model, shard, out)
    assert main(job) == 3
    log = out / "log" / "rank-0.log"
    first = log.read_text().splitlines()
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"
    assert all(re.match(rf"{time} INFO (started|ended|done|failed) ", line) for line in first)
    expected = set()
    for row in rows(out).values():
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


def test_hostile_keys_names_and_errors_reach_neither_terminal_nor_log(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Each command that names keys, members or files is given some that would retitle and clear a terminal."""
    evil, out, packed = "\x1b]0;P\x07\x1b[2J\u202e", tmp_path / "out", tmp_path / "packed"
    shard = write_shard(
        tmp_path / "s.tar",
        {f"k{evil}.png": png(1), f"k{evil}.txt": b"c", f"bad.{evil}": b"x", "bad.txt": b"c", "猫.png": png(2)}
        | {"猫.txt": b"c", f"html{evil}.png": f"<html>{evil}".encode(), f"html{evil}.txt": b"c"},
    )
    other = write_shard(tmp_path / f"other{evil}.tar", captioned(1))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (f"a{evil}.png", f"a{evil}.jpg", f"a{evil}.txt"):
        (folder / name).write_bytes(png(3))
    commands = [
        arguments(tiny_model, shard, out),
        arguments(tiny_model, other, tmp_path / "2"),
        arguments(tiny_model, shard, tmp_path / "3", "--data.max_failures=0"),
        arguments(tmp_path / f"model{evil}", shard, tmp_path / "4"),
        ["status", str(out)],
        ["verify", str(out), f"--data.shards={write_shard(tmp_path / 'folder' / 's.tar', captioned(1))}"],
        ["verify", str(tmp_path / "2"), "--json"],
        ["edit", f"--inversions={out}", "--key=none", f"--output={tmp_path}/x.png"],
        ["edit", f"--inversions={out}", f"--key=html{evil}", f"--output={tmp_path}/x.png"],
        ["edit", f"--data.inversions={out}", f"--output.dir={tmp_path}/e{evil}", f"--data.edits={tmp_path}/{evil}"],
        ["export", str(out), "--output", str(tmp_path / f"exported{evil}")],
        ["export", str(out), "--output", str(tmp_path / "exported"), f"--key={evil}"],
        ["report", str(out), f"--output={tmp_path}/{evil}.html"],
        ["pack", str(folder), str(packed)],
    ]
    for command in commands:
        main(command)
    with pytest.raises(SystemExit):
        main(["status", str(out), f"more{evil}"])
    captured = capsys.readouterr()
    assert r"k\x1b]0;P\x07\x1b[2J\u202e" in captured.out
    assert "s/猫: is committed and not in the input" in captured.out
    logs = [path.read_text() for path in tmp_path.rglob("*.log")]
    page = (tmp_path / f"{evil}.html").read_text()
    for text in (captured.out, captured.err, page, *logs):
        assert len(text) > 100 and all(line.isprintable() for line in text.split("\n"))


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
