"""`nti-batch pie-bench`: inversions, edits and scores by each method, and one table."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import run_console, wait_for
from helpers.pie_folder import EDITS, write_pie_folder
from helpers.tiny_scores import write_clip, write_dino

from nti_batch.cli import main
from nti_batch.commands import pie_bench

STEPS = "--model.num_steps=2"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the benchmark's folder; the jobs run in this process, which is quicker."""

    def run_here(arguments: Sequence[str], *_: object) -> int:
        return main([*arguments])

    monkeypatch.setattr(pie_bench, "run_job_process", run_here)
    return write_pie_folder(tmp_path / "pie")


def run(model: Path, folder: Path, *more: str) -> tuple[int, Path]:
    """Run the benchmark with a quick job; return the exit code and the folder of the runs."""
    out = folder.parent / "out"
    flags = [f"--model.name={model}", STEPS, "--trainer.accelerator=cpu", "--trainer.devices=1"]
    return main(["pie-bench", str(folder), str(out), *flags, *more]), out


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the object that the last command has printed."""
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_each_method_has_a_row_beside_the_published_one(
    tiny_model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    code, out = run(tiny_model, folder, "--methods", "null-text", "ddim", "ddpm")
    assert code == 0
    table = (out / "pie-bench.md").read_text()
    assert capsys.readouterr().out.endswith(table)
    head, _, *rows = map(cells, table.split("\n\n")[0].splitlines())
    assert [row[:4] for row in rows] == [
        ["ddim", "prompt-to-prompt", "these runs", "3"],
        ["ddim", "prompt-to-prompt", "published", "700"],
        ["null-text", "prompt-to-prompt", "these runs", "3"],
        ["null-text", "prompt-to-prompt", "published", "700"],
        ["ddpm", "prompt-to-prompt", "these runs", "3"],
    ]
    published = dict(zip(head, rows[3], strict=True))
    assert (published["PSNR"], published["MSE x 10^4"], published["CLIP edited"]) == ("27.03", "35.86", "21.86")
    for expected in (
        f"model: {tiny_model}",
        "UNet in float32, images of 16 x 16",
        "torch 2",
        "nti-batch 0",
        "2310.01506",
    ):
        assert expected in table


def test_the_scores_are_those_of_the_benchmarks_protocol(
    tiny_model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    weights = folder.parent / "weights"
    write_clip(weights / "clip")
    write_dino(weights / "dino")
    code, out = run(tiny_model, folder, "--methods", "direct", f"--weights={weights}", "--json")
    assert code == 0
    (row,) = printed(capsys)["rows"]
    assert main(["score", str(out / "direct" / "edits"), f"--weights={weights}", "--json"]) == 0
    scores = [edit["scores"]["pie-bench"] for edit in json.loads(capsys.readouterr().out)]
    for name, factor in {
        "structure": 1e3,
        "psnr": 1,
        "mse": 1e4,
        "ssim": 100,
        "clip_whole": 1,
        "clip_edited": 1,
    }.items():
        mean = factor * sum(score[name] for score in scores) / len(EDITS)
        assert row["scores"][name] == pytest.approx(mean), name
    assert row["scores"]["lpips"] is None and row["published"]["lpips"] == 54.55
    assert row["seconds_inversion"] > 0 and row["seconds_edit"] > 0


def test_the_same_command_computes_nothing_again_and_another_method_is_added(
    tiny_model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.rglob("*.tar") if path.parent != out}

    code, out = run(tiny_model, folder, "--methods", "ddim")
    first, table = times(), (out / "pie-bench.md").read_text()
    assert code == 0 and run(tiny_model, folder, "--methods", "ddim")[0] == 0
    assert times() == first and (out / "pie-bench.md").read_text() == table
    assert run(tiny_model, folder, "--methods", "ddim", "negative-prompt")[0] == 0
    assert times().items() > first.items()
    assert "| negative-prompt |" in (out / "pie-bench.md").read_text()
    assert len((out / "machines.txt").read_text().splitlines()) == 1


def test_other_settings_of_the_same_runs_are_refused(
    tiny_model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(tiny_model, folder, "--methods", "ddim")[0] == 0
    assert run(tiny_model, folder, "--methods", "ddim", "--model.num_steps=3")[0] == 2
    assert "model.num_steps" in capsys.readouterr().err


def test_settings_that_are_not_the_benchmarks_are_listed(
    tiny_model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(tiny_model, folder, "--methods", "ddim", "--model.guidance_scale=3", "--json")[0] == 0
    assert printed(capsys)["settings"] == "the benchmark's but for guidance_scale = 3.0, num_steps = 2"


def test_an_image_that_cannot_be_read_is_counted_and_the_others_are_scored(
    tiny_model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    broken = sorted((folder / "annotation_images").rglob("*.jpg"))[0]
    broken.write_bytes(b"<html>")
    code, out = run(tiny_model, folder, "--methods", "ddim")
    table = (out / "pie-bench.md").read_text()
    assert code == 3 and "| ddim | prompt-to-prompt | these runs | 2 |" in table
    assert "ddim: edits without scores: 1 that are not done" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "edict"], "edict"),
        (["--model.method=ddim"], "model.method"),
        (["--model.num_steps=0"], "model.num_steps is 0"),
        (["--weights=nowhere"], "'nowhere' is no folder"),
        (["--model.loras", "one.safetensors", "two.safetensors"], "LoRA 'one.safetensors' is no file"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    code, out = run(Path("demo"), folder, *arguments)
    assert code == 2 and message in capsys.readouterr().err and not out.exists()


def test_a_folder_without_the_benchmark_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["pie-bench", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "mapping_file.json cannot be read" in capsys.readouterr().err


def test_one_task_of_several_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in {"NTASKS": "4", "STEP_ID": "0", "PROCID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert run(Path("demo"), folder)[0] == 2
    assert "one of 4 tasks of srun" in capsys.readouterr().err


def test_a_stopped_job_stops_the_command_and_the_same_command_resumes(tiny_model: Path, tmp_path: Path):
    folder, out = write_pie_folder(tmp_path / "pie"), tmp_path / "out"
    command = ["pie-bench", str(folder), str(out), f"--model.name={tiny_model}", STEPS, "--methods", "ddim"]
    with subprocess.Popen([sys.executable, "-m", "nti_batch", *command], stderr=subprocess.PIPE, text=True) as process:
        wait_for(out / "pie-bench.tar")
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=180)[1]
    assert process.returncode == 75, errors
    assert "run the same command again to resume" in errors
    done = run_console(command)
    assert done.returncode == 0, done.stderr
    assert "| ddim | prompt-to-prompt | these runs | 3 |" in done.stdout
