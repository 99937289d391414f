"""`nti-batch verify` reports every flipped bit and every lost or duplicated edit of a run, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.tiny import captioned, write_shard

from nti_batch.cli import main

ON_CPU = "--trainer.accelerator=cpu"


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run of three edits, one of which fails."""
    folder = tmp_path_factory.mktemp("edit-verify")
    shard = write_shard(folder / "a.tar", captioned(2))
    model = [f"--model.name={tiny_model}", "--model.num_steps=2", "--model.method=negative-prompt"]
    command = ["invert", *model, f"--data.shards={shard}", f"--output.dir={folder}/inversions", ON_CPU]
    assert main(command) == 0
    edits = [{"key": "000", "name": "a"}, {"key": "000", "name": "b"}, {"key": "none", "name": "c"}]
    (folder / "edits.jsonl").write_text("\n".join(map(json.dumps, edits)))
    command = ["edit", f"--data.inversions={folder}/inversions", f"--data.edits={folder}/edits.jsonl", ON_CPU]
    assert main([*command, f"--output.dir={folder}/out", "--data.units_per_shard=1"]) == 3
    return folder / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """Copy of the output folder."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def findings(out: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return a line for each finding of the command."""
    capsys.readouterr()
    code = main(["verify", str(out), "--json"])
    lines = [f"{finding['where']}: {finding['what']}" for finding in json.loads(capsys.readouterr().out)]
    assert code == bool(lines)
    return lines


def test_a_good_run_of_edits_has_no_findings(out: Path, capsys: pytest.CaptureFixture[str]):
    assert findings(out, capsys) == []


@pytest.mark.parametrize("ending", ["tar", "jsonl"])
def test_a_flipped_bit_of_a_run_of_edits_is_found(out: Path, ending: str, capsys: pytest.CaptureFixture[str]):
    (path,) = (out / "edits").glob(f"*.{ending}")
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 25)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert findings(out, capsys), f"byte {place} of {path.name}"


def test_lost_and_duplicated_edits_are_reported(out: Path, capsys: pytest.CaptureFixture[str]):
    (manifest,) = (out / "edits").glob("*.jsonl")
    for path in (manifest, manifest.with_suffix(".tar")):
        shutil.copy(path, path.with_name(path.name.replace(".00000.", ".00001.")))
    assert findings(out, capsys) == [f"a/{name}: is committed twice" for name in ("none+c", "000+a", "000+b")]
    for path in (out / "edits").glob("*.0000*"):
        path.unlink()
    missing = [
        f"a/{key}: lacks the requested edit {name!r}" for key, name in (("000", "a"), ("000", "b"), ("none", "c"))
    ]
    assert findings(out, capsys) == missing


def test_an_unexpected_file_is_reported(out: Path, capsys: pytest.CaptureFixture[str]):
    (out / "edits" / "b.0of1.00000.tar").touch()
    assert ["b.0of1.00000.tar: belongs to no work unit" in line for line in findings(out, capsys)] == [True]


def test_recomputing_edits_is_refused(out: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(out), "--recompute", "1"]) == 2
    assert "has edits, and --recompute checks inversions" in capsys.readouterr().err
