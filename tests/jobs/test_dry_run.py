"""`--dry_run` prints the work of a job, and changes nothing."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.jobs import arguments, status_of
from helpers.tiny import captioned, png, write_mixed_shard, write_shard
from safetensors import safe_open

from nti_batch.cli import main
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.part import read_members


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """List every file and folder with its size and modification time."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


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
    write_mixed_shard(tmp_path / "a.tar")
    assert main(arguments(tiny_model, tmp_path / "a.tar", tmp_path / "out")) == 3
    write_shard(tmp_path / "b.tar", captioned(5))
    rate = status_of(tmp_path / "out", capsys)["images_per_hour"]
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


@pytest.mark.parametrize(
    "flags",
    [["--output.storage=float32"], ["--output.storage=float16", "--model.method=direct"], ["--model.method=ddpm"]],
)
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


def test_a_dry_run_opens_the_first_images_of_each_shard_and_names_what_would_fail_and_the_devices(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_mixed_shard(tmp_path / "a.tar")
    write_shard(tmp_path / "b.tar", captioned(20))
    job = [*arguments(tiny_model, tmp_path, tmp_path / "out"), "--dry_run"]
    assert main([*job, "--data.units_per_shard=3"]) == 0
    printed = capsys.readouterr().out
    assert "opened: the first 12 of 2 shards, 1 would fail" in printed
    assert "would fail a/html: image: image is not a whole JPEG" in printed
    assert re.search(r"^devices: 1 x cpu, of \d+ cores", printed, re.MULTILINE)
    assert main([*job, "--trainer.devices=999", "--trainer.accelerator=gpu"]) == 2
    assert "this machine has" in capsys.readouterr().err
