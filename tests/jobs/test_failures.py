"""The job reports and limits failures and retries them on request; it inverts and marks truncated prompts."""

import itertools
from pathlib import Path

import pytest
import torch
from helpers.jobs import arguments, ids, rows
from helpers.tiny import captioned, png, write_shard
from torch import Tensor

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.jobs.failure_limit import FailureLimit
from nti_batch.jobs.tally import Tally
from nti_batch.models.stable_diffusion import StableDiffusion


def with_pages(good: int, bad: int) -> dict[str, bytes]:
    """Make members of good samples, and then of samples whose image is a page of HTML."""
    pages = {f"{i:03}.{e}": b"<html>" for i in range(good, good + bad) for e in ("png", "txt")}
    return captioned(good) | pages


@pytest.mark.parametrize(
    ("limit", "failed", "processed", "exceeded"),
    [
        ("0", 0, 1000, False),
        ("0", 1, 1000, True),
        ("12", 12, 12, False),
        ("12", 13, 1000, True),
        ("5%", 99, 99, False),
        ("5%", 5, 100, False),
        ("5%", 6, 100, True),
        ("0.5%", 6, 1000, True),
        ("100%", 1000, 1000, False),
    ],
)
def test_a_failure_limit_is_a_count_or_a_share_of_at_least_a_hundred_records(
    limit: str, failed: int, processed: int, exceeded: bool
):
    assert FailureLimit.parse(limit).is_exceeded(Tally(done=processed - failed, failed=failed)) is exceeded


def test_a_job_with_too_many_failures_stops_and_keeps_its_results(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard, out = write_shard(tmp_path / "s.tar", with_pages(4, 40)), tmp_path / "out"
    job = [*arguments(tiny_model, shard, out), "--data.units_per_shard=1"]
    assert main([*job, "--data.max_failures=3"]) == 1
    captured = capsys.readouterr()
    assert "images have failed, and data.max_failures is 3 (the last: s/007 at stage 'image'" in captured.err
    assert captured.err.count("\n") == 1
    assert sum(row.status == "failed" for row in rows(out).values()) == 4
    assert main(job) == 3
    assert ids(out) == [("s", f"{i:03}") for i in range(4)]
    assert len(rows(out)) == 44


def test_retry_failed_repeats_failed_images_and_no_finished_ones(tiny_model: Path, tmp_path: Path):
    shard, out = write_shard(tmp_path / "s.tar", with_pages(3, 2)), tmp_path / "out"
    job = arguments(tiny_model, shard, out, "--output.part_images=1")
    assert main(job) == 3
    done = {key: row for key, row in rows(out).items() if row.status == "done"}
    write_shard(shard, with_pages(4, 1))
    assert main(job) == 3
    assert rows(out)["003"].status == "failed", "a retry needs the flag"
    assert main([*job, "--data.retry_failed=true"]) == 3
    again = rows(out)
    assert {key: row.status for key, row in again.items()} == dict.fromkeys(("000", "001", "002", "003"), "done") | {
        "004": "failed"
    }
    assert done.items() <= again.items(), "no finished image is computed again"
    assert main(["verify", str(out)]) == 0
    write_shard(shard, captioned(5))
    assert main([*job, "--data.retry_failed=true"]) == 0
    assert len(ids(out)) == 5
    assert main(["verify", str(out)]) == 0


def test_a_truncated_shard_gives_its_other_images_once_it_is_complete(tiny_model: Path, tmp_path: Path):
    shard, out = write_shard(tmp_path / "s.tar", captioned(4)), tmp_path / "out"
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(b"002.png") + 600])
    assert main(arguments(tiny_model, shard, out)) == 3
    assert {key for key, row in rows(out).items() if row.status == "failed"} == {"002", ""}
    shard.write_bytes(content)
    assert main([*arguments(tiny_model, shard, out), "--data.retry_failed=true"]) == 0
    assert ids(out) == [("s", f"{i:03}") for i in range(4)]


def test_a_prompt_longer_than_the_text_encoder_reads_is_truncated_and_marked(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """CLIP reads 77 tokens: 75 words, a start token and an end token."""
    words = {"fits": " ".join(["red"] * 75), "long": " ".join(["red"] * 76), "other": " ".join(["red"] * 75 + ["blue"])}
    members = {
        f"{key}.{e}": data for key, text in words.items() for e, data in (("png", png(1)), ("txt", text.encode()))
    }
    shard, out = write_shard(tmp_path / "s.tar", members), tmp_path / "out"
    assert main([*arguments(tiny_model, shard, out), "--data.units_per_shard=1"]) == 0
    assert {key: row.prompt_truncated for key, row in rows(out).items()} == {"fits": False, "long": True, "other": True}
    assert "prompts that were truncated to the length that the text encoder reads: 2" in capsys.readouterr().out
    inversions = {stored.key: stored for stored in read_inversions(out)}
    assert inversions["long"].prompt == words["long"], "the stored caption is not truncated"
    torch.testing.assert_close(inversions["long"].noise_latents, inversions["other"].noise_latents)


def nan_in_row(number: int, method: str) -> object:
    """Make a method of the networks whose result is nan in one row, counted from 0 over all calls."""
    real, rows = getattr(StableDiffusion, method), itertools.count()

    def broken(networks: StableDiffusion, tensor: Tensor) -> Tensor:
        result: Tensor = real(networks, tensor)
        return torch.stack([row * float("nan") if next(rows) == number else row for row in result])

    return broken


@pytest.mark.parametrize(
    ("method", "stage", "reason"),
    [
        ("encode_images", "inversion", "the loss at t = 3 of 3 is nan"),
        ("decode_latents", "reconstruction", "the PSNR is nan"),
    ],
)
def test_values_that_are_not_finite_fail_only_their_image(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, stage: str, reason: str
):
    shard, out = write_shard(tmp_path / "s.tar", captioned(4)), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusion, method, nan_in_row(2, method))
        assert main([*arguments(tiny_model, shard, out), "--data.units_per_shard=1"]) == 3
    committed = rows(out).values()
    assert sorted(row.status for row in committed) == ["done", "done", "done", "failed"]
    (failed,) = (row for row in committed if row.status == "failed")
    assert failed.stage == stage
    assert reason in failed.error
    assert main([*arguments(tiny_model, shard, out), "--data.units_per_shard=1", "--data.retry_failed=true"]) == 0
