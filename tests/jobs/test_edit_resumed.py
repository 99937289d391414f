"""`nti-batch edit` resumes after kills, signals and failures, and makes each edit once."""

import os
import signal
from pathlib import Path

import pytest
from helpers.edits import edit, edited_images, edits_flag, rows
from helpers.jobs import arguments, held_job, run_console, wait_for
from helpers.tiny import captioned, write_shard
from torch import Tensor

from nti_batch.cli import main
from nti_batch.models.stable_diffusion import StableDiffusion


def test_retry_failed_repeats_failed_edits(tiny_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "inversions")) == 0
    write_shard(tmp_path / "t.tar", captioned(1, first=7))
    flag = edits_flag(tmp_path / "e.jsonl", *({"shard": "s", "key": key, "name": "x"} for key in ("000", "001")))
    job = edit(tmp_path / "inversions", tmp_path / "out", flag)
    assert main(job) == 3
    before = rows(tmp_path / "out")
    write_shard(shard, captioned(2))
    for complete in (tmp_path / "inversions" / "inversions").glob("*.complete"):
        complete.unlink()
    assert main(arguments(tiny_model, shard, tmp_path / "inversions")) == 0
    assert main(job) == 3, "a retry needs the flag"
    assert main([*job, "--data.retry_failed=true"]) == 0
    after = rows(tmp_path / "out")
    assert after["s", "001", "x"].status == "done"
    assert after["s", "000", "x"] == before["s", "000", "x"]


def test_edits_added_to_the_list_are_made_and_the_earlier_ones_stay(
    inverted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = [{"key": key, "edit_prompt": "a blue circle"} for key in ("000", "001")]
    job = edit(inverted, tmp_path / "out", edits_flag(tmp_path / "e.jsonl", *first))
    assert main(job) == 0
    before = rows(tmp_path / "out")
    edits_flag(tmp_path / "e.jsonl", *first, *({"key": key, "edit_prompt": "a cyan star"} for key in ("001", "004")))
    assert main(["status", str(tmp_path / "out"), "--exit_code"]) == 75
    assert main(job) == 0
    after = rows(tmp_path / "out")
    assert after.keys() == {("a", "000", "0"), ("a", "001", "0"), ("a", "001", "1"), ("a", "004", "0")}
    assert before.items() <= after.items()
    monkeypatch.setattr(StableDiffusion, "decode_latents", lambda *_: pytest.fail("an edit was repeated"))
    assert main(job) == 0


def test_two_ranks_make_each_edit_once(inverted: Path, tmp_path: Path):
    job = run_console(edit(inverted, tmp_path / "out", "--trainer.devices=2", "--data.units_per_shard=3"), timeout=500)
    assert job.returncode == 0, job.stderr
    assert "6 done, 0 failed, 0 missing of 6 edits" in job.stdout
    assert len(edited_images(tmp_path / "out")) == 6


def test_a_killed_job_keeps_its_finished_edits(inverted: Path, tmp_path: Path):
    edits = ({"key": f"{i % 5:03}", "edit_prompt": f"a blue circle, number {i}"} for i in range(60))
    flag = edits_flag(tmp_path / "e.jsonl", *edits)
    job, hold = edit(inverted, tmp_path / "out", flag, "--data.units_per_shard=16"), tmp_path / "hold"
    with held_job(job, hold) as process:
        wait_for(tmp_path / "hold.0", 500)
        process.kill()
    unfinished = list((tmp_path / "out" / "edits").glob("*.tar.tmp"))
    assert unfinished
    killed = max(file.stat().st_mtime for file in unfinished)
    assert main(job) == 0
    edited = rows(tmp_path / "out")
    assert len(edited) == 60
    assert sum(row.finished <= killed for row in edited.values()) >= 8


def test_a_signal_ends_the_job_before_the_next_unet_call_and_a_second_job_resumes(
    inverted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    predict, calls = StableDiffusion.predict, 0

    def interrupted(self: StableDiffusion, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, latents, timesteps, embeddings)

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusion, "predict", interrupted)
        assert main(edit(inverted, tmp_path / "out")) == 75
    assert calls == 3
    assert rows(tmp_path / "out") == {}
    assert main(edit(inverted, tmp_path / "out")) == 0
    assert len(rows(tmp_path / "out")) == 6
