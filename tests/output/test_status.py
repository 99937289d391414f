"""`nti-batch status` lists failures with their reasons, and notices parts that are gone."""

import json
from pathlib import Path

import pytest
from helpers.jobs import arguments, status_of
from helpers.tiny import captioned, write_mixed_shard, write_shard

from nti_batch.cli import main


def test_status_and_the_summary_of_a_job_list_the_failed_images(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    job = arguments(tiny_model, write_mixed_shard(tmp_path / "s.tar"), tmp_path / "out")
    for argv, code in ((job, 3), (["status", str(tmp_path / "out"), "--failures"], 0)):
        assert main(argv) == code
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed s/")]
        assert line.startswith("failed s/html: image: image is not a whole JPEG")
    assert main(["status", str(tmp_path / "out")]) == 0
    assert "failed s/" not in capsys.readouterr().out


def test_of_many_failures_the_first_are_listed_and_where_the_others_are(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = {f"{n:03}.{kind}": b"<html>" for n in range(23) for kind in ("png", "txt")}
    assert main(arguments(tiny_model, write_shard(tmp_path / "s.tar", images), tmp_path / "out")) == 3
    printed = capsys.readouterr().out
    assert printed.count("failed s/") == 20
    assert f"and 3 more: rows with the status 'failed' in {tmp_path / 'out' / 'inversions'}/*.jsonl" in printed
    assert len(status_of(tmp_path / "out", capsys)["failed_records"]) == 20


def test_status_notices_a_tar_and_a_manifest_that_are_gone(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, shard = tmp_path / "out", write_shard(tmp_path / "s.tar", captioned(2))
    flags = ["--data.units_per_shard=1", "--output.part_images=1", "--model.batch_size=1"]
    assert main([*arguments(tiny_model, shard, out), *flags]) == 0
    assert status_of(out, capsys)["missing_parts"] == []
    (out / "inversions" / "s.0of1.00001.tar").unlink()
    assert main(["status", str(out)]) == 0
    assert "1 files of parts are missing: s.0of1.00001.tar" in capsys.readouterr().out
    (out / "inversions" / "s.0of1.00000.jsonl").unlink()
    assert status_of(out, capsys)["missing_parts"] == ["s.0of1.00000.jsonl", "s.0of1.00001.tar"]


def test_the_table_has_a_line_for_each_shard(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_mixed_shard(tmp_path / "mixed.tar")
    write_shard(tmp_path / "whole.tar", captioned(2))
    out = tmp_path / "out"
    job = arguments(tiny_model, tmp_path, out)
    assert main([*job, "--data.limit=5"]) == 3
    capsys.readouterr()
    assert main(["status", str(out), "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 done, 1 failed, 1 missing of 6 images"
    assert lines[-3:] == [
        "done  failed  missing  shard",
        "   3       1        0  mixed",
        "   1       0        1  whole",
    ]
    assert main(["status", str(out), "--table", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"][1] == {"shard": "whole", "done": 1, "failed": 0, "missing": 1}
