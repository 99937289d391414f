"""`nti-batch verify` reports every flipped bit and every lost or duplicated image of a run, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.runs import plan_of, units_of
from helpers.tiny import captioned, write_model, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.output.inversions import InversionRun, open_inversions
from nti_batch.output.run_file import RUN_FILE
from nti_batch.report.integrity import verify_run
from nti_batch.settings import flatten


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two shards, which have one damaged image, and their run."""
    folder = tmp_path_factory.mktemp("verify")
    write_shard(folder / "a.tar", captioned(2))
    write_shard(folder / "b.tar", captioned(1) | {"bad.png": b"<html>", "bad.txt": b"a page"})
    code = main(
        [
            "invert",
            f"--model.name={tiny_model}",
            f"--data.shards={folder}/*.tar",
            f"--output.dir={folder}/out",
            "--model.num_steps=3",
            "--model.batch_size=2",
            "--data.units_per_shard=1",
            "--trainer.accelerator=cpu",
            "--output.storage=compact",
        ]
    )
    assert code == 3
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> InversionRun:
    """Copy of the run."""
    return open_inversions(Path(shutil.copytree(finished / "out", tmp_path / "out")))


def findings(run: InversionRun, recompute: int = 0) -> list[str]:
    """Return a line for each finding."""
    return [f"{finding.where}: {finding.what}" for finding in verify_run(plan_of(open_inversions(run.out)), recompute)]


def test_a_good_run_has_no_findings(run: InversionRun, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(run.out), "--recompute", "2"]) == 0
    checked, outcome = capsys.readouterr().out.splitlines()
    assert outcome == "no findings: the run is intact"
    assert "2 parts with 3 images" in checked and "1 failed rows, 4 images of the input; 2 reconstructions" in checked
    assert main(["verify", str(run.out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("pattern", ["*.tar", "*.jsonl", "*.complete", "../run.json"])
def test_a_flipped_bit_is_found_anywhere_in_a_file(run: InversionRun, pattern: str):
    for path in sorted(run.folder.glob(pattern)):
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 25)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            try:
                assert findings(run), f"byte {place} of {path.name}"
            except ValueError as error:
                assert "run.json" in str(error)
        path.write_bytes(content)
        assert findings(open_inversions(run.out)) == []


def test_a_flipped_bit_in_the_name_of_a_setting_or_figure_is_found(run: InversionRun):
    part = run.folder / "a.0of1.00000.tar"
    content = part.read_bytes()
    for stored in read_inversions(run.out, [("a", "000")]):
        for name in stored.metadata:
            place = content.index(f'"{name}"'.encode()) + 1
            part.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            assert findings(run), name


def test_lost_and_duplicated_images_are_reported(run: InversionRun):
    manifest = run.folder / "a.0of1.00000.jsonl"
    shutil.copy(manifest, run.folder / "a.0of1.00001.jsonl")
    shutil.copy(manifest.with_suffix(".tar"), run.folder / "a.0of1.00001.tar")
    assert [f for f in findings(run) if "twice" in f] == ["a/000: is committed twice", "a/001: is committed twice"]
    for path in run.folder.glob("a.0of1.*"):
        path.unlink()
    lost = [f for f in findings(run) if "not committed" in f]
    assert lost == [f"a/{key}: is in the input and not committed" for key in ("000", "001")]


def test_files_of_a_killed_job_and_unexpected_files_are_reported(run: InversionRun):
    (run.folder / "a.0of1.00001.tar.tmp").touch()
    (run.folder / "c.0of1.00000.tar").touch()
    first, second = findings(run)
    assert "a.0of1.00001.tar.tmp: is not committed" in first
    assert "c.0of1.00000.tar: belongs to no work unit" in second


def test_a_reconstruction_that_misses_its_psnr_is_reported(run: InversionRun, tiny_model: Path):
    """The settings of the run name another model."""
    settings = json.loads((run.out / RUN_FILE).read_text())
    other = write_model(run.out / "other", seed=1)
    settings["settings"]["model"] |= {"name": str(other), "fingerprint": None}
    (run.out / RUN_FILE).write_text(json.dumps(settings))
    assert any("is reconstructed at" in finding for finding in findings(open_inversions(run.out), recompute=3))


def test_a_missing_input_shard_is_reported(run: InversionRun, tmp_path: Path, finished: Path):
    moved = write_shard(tmp_path / "a.tar", captioned(3))
    shards = f"{moved}::{finished}/b.tar"
    lines = [f"{f.where}: {f.what}" for f in verify_run(plan_of(run, shards.split("::")), 0)]
    assert lines == ["a/002: is in the input and not committed"]
    moved.unlink()
    assert any(
        str(moved) in f.where and "cannot be read" in f.what for f in verify_run(plan_of(run, shards.split("::")), 0)
    )


def test_a_work_unit_whose_damaged_files_are_removed_is_inverted_again(finished: Path, run: InversionRun):
    unit = units_of(run)[0]
    (damaged,) = run.folder.glob(f"{unit.name}.*.tar")
    damaged.write_bytes(bytes(512) + damaged.read_bytes()[512:])
    assert findings(run)
    for path in run.folder.glob(f"{unit.name}.*"):
        path.unlink()
    recorded = flatten(run.settings.to_json()).items()
    found = ("model.fingerprint", "data.images")
    settings = [f"--{name}={value}" for name, value in recorded if value is not None and name not in found]
    command = ["invert", *settings, f"--data.shards={finished}/*.tar", f"--output.dir={run.out}"]
    assert main([*command, "--model.batch_size=2", "--trainer.accelerator=cpu"]) == 3
    assert findings(run) == []


def test_each_finding_says_what_mends_it(run: InversionRun, capsys: pytest.CaptureFixture[str]):
    (run.out / "inversions" / "a.0of1.00000.tar").unlink()
    (run.out / "inversions" / "c.0of1.00000.tar").touch()
    assert main(["verify", str(run.out)]) == 1
    missing, strange, *_ = capsys.readouterr().out.splitlines()
    assert f"restore the file, or, while no job runs, remove all files {run.out}/inversions/a.0of1.* and run" in missing
    assert "; to mend it, move it away" in strange
    assert main(["verify", str(run.out), "--json"]) == 1
    assert all(finding["mend"] for finding in json.loads(capsys.readouterr().out))
