"""`nti-batch invert` as users run it: its results, and the settings that it refuses."""

import inspect
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers.jobs import arguments, files, ids
from helpers.tiny import captioned, png, write_shard
from lightning.pytorch import Trainer
from PIL import Image

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.data.images import decode_image
from nti_batch.diffusion.null_text import InvertedImage
from nti_batch.diffusion.pool import InversionPool
from nti_batch.editing.reconstruct import reconstruct
from nti_batch.jobs.parser import REFUSED
from nti_batch.jobs.signals import STOP_SIGNALS
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.manifest import Manifest
from nti_batch.output.manifest_rows import InversionRow
from nti_batch.scores.metrics import psnr


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Write two shards with the same keys, in a folder with an awkward name."""
    folder = tmp_path / "a 'folder'"
    folder.mkdir()
    for name in ("a-000000", "b-000000"):
        write_shard(folder / f"{name}.tar", captioned(5))
    return str(folder / "*.tar")


def test_the_job_inverts_every_image_and_a_second_run_changes_nothing(
    tiny_model: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(arguments(tiny_model, shards, out)) == 0
    assert ids(out) == [(shard, f"{i:03}") for shard in ("a-000000", "b-000000") for i in range(5)]
    assert "10 done, 0 failed, 0 missing of 10 images" in capsys.readouterr().out
    with Image.open(out / "preview.png") as picture:
        assert picture.size[0] > 4 * 128
    before = files(out)
    assert main(arguments(tiny_model, shards, out)) == 0
    assert files(out) == before


def test_the_first_call_starts_once_it_is_full_while_the_pool_still_fills(
    tiny_model: Path, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    in_flight, advance = [], InversionPool.advance

    def noted(pool: InversionPool[tuple[str, str]]) -> list[tuple[tuple[str, str], InvertedImage]]:
        in_flight.append(len(pool))
        return advance(pool)

    monkeypatch.setattr(InversionPool, "advance", noted)
    assert main(arguments(tiny_model, shards, tmp_path / "out", "--model.batch_size=4")) == 0
    assert in_flight[0] == 4 and max(in_flight) == 7


def test_a_reconstruction_from_the_file_reaches_the_recorded_psnr(tiny_model: Path, shards: str, tmp_path: Path):
    assert main(arguments(tiny_model, shards, tmp_path / "out", "--data.height=16", "--data.width=24")) == 0
    networks = StableDiffusion.load(ModelSource(str(tiny_model)))
    for stored in read_inversions(tmp_path / "out", [("a-000000", "003"), ("b-000000", "001")]):
        assert stored.noise_latents.shape == (4, 8, 12)
        assert stored.null_embeddings.shape == (3, 77, 8)
        image = reconstruct(networks, [stored], guided=True)
        original = decode_image(png(int(stored.key)), 16, 24)[None] / 255
        assert psnr(image, original).item() == pytest.approx(stored.metadata["psnr"], abs=1e-3)


def test_every_bad_input_gets_a_failed_row_and_the_other_images_are_inverted(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    members = captioned(2) | {
        "html.png": b"<html>not found</html>",
        "html.txt": b"a page",
        "mute.png": png(7),
        "blank.png": png(8),
        "blank.txt": b"  ",
    }
    shard = write_shard(tmp_path / "mixed.tar", members | captioned(1, first=9))
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(b", number 9")])
    out = tmp_path / "out"
    assert main(arguments(tiny_model, shard, out)) == 3
    assert main(["status", str(out), "--json"]) == 0
    status = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {
        r.key: r
        for manifest in sorted((out / "inversions").glob("*.jsonl"))
        for r in Manifest.read(manifest, InversionRow).rows
    }
    done = {key for key, row in rows.items() if row.status == "done"}
    stages = {key: row.stage for key, row in rows.items() if row.status == "failed"}
    assert done == {"000", "001"}
    assert stages == {"html": "image", "mute": "caption", "blank": "caption", "009": "shard", "": "shard"}
    counts = [status[name] for name in ("done", "failed", "damaged_shards", "missing")]
    assert counts == [len(done), len(stages) - 1, 1, 0]
    assert main(["status", str(out), "--exit_code"]) == 3
    assert main(arguments(tiny_model, shard, out)) == 3, "a second run has no work, but reports the failures"


@pytest.mark.parametrize("more", ["--model.batch_size=auto", "--model.compile=aot_eager"])
def test_settings_for_speed_give_the_same_inversions(tiny_model: Path, shards: str, tmp_path: Path, more: str):
    for name, flags in {"plain": [], "faster": [more]}.items():
        assert main([*arguments(tiny_model, shards, tmp_path / name, "--output.storage=float32"), *flags]) == 0
    plain, faster = ({(s.shard, s.key): s for s in read_inversions(tmp_path / name)} for name in ("plain", "faster"))
    assert len(plain) == len(faster) == 10
    for key, stored in plain.items():
        torch.testing.assert_close(faster[key].noise_latents, stored.noise_latents, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(faster[key].null_embeddings, stored.null_embeddings, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("storage", ["float32", "float16", "compact"])
@pytest.mark.parametrize("solver", ["adam", "authors", "polyak"])
def test_every_storage_reconstructs_to_the_psnr_of_the_job(tiny_model: Path, tmp_path: Path, storage: str, solver: str):
    shard = write_shard(tmp_path / "s.tar", captioned(2))
    flags = [f"--output.storage={storage}", f"--model.solver={solver}"]
    assert main([*arguments(tiny_model, shard, tmp_path / "out"), *flags]) == 0
    networks = StableDiffusion.load(ModelSource(str(tiny_model)))
    for stored in read_inversions(tmp_path / "out"):
        assert stored.settings.inversion.solver == solver
        image = reconstruct(networks, [stored], guided=True)
        original = decode_image(png(int(stored.key)), 16, 16)[None] / 255
        assert psnr(image, original).item() == pytest.approx(stored.metadata["psnr"], abs=1e-3)
        assert stored.null_embeddings.dtype == torch.float32


def test_after_a_preview_that_meets_a_signal_the_handlers_are_as_before(
    tiny_model: Path, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = [signal.getsignal(s) for s in STOP_SIGNALS]
    monkeypatch.setattr("nti_batch.commands.invert.draw_preview", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    assert main(arguments(tiny_model, shards, tmp_path / "out")) == 0, "every image is committed"
    assert [signal.getsignal(s) for s in STOP_SIGNALS] == before


def test_equal_jobs_give_equal_bits(tiny_model: Path, shards: str, tmp_path: Path):
    for name in ("one", "two"):
        assert main(arguments(tiny_model, shards, tmp_path / name)) == 0
    one, two = ({(s.shard, s.key): s.null_embeddings for s in read_inversions(tmp_path / n)} for n in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


WRONG = {
    "--model.num_stepz=3": "num_stepz",
    "--model.name=/no/such/model": "model '/no/such/model' is not a folder: give a diffusers checkpoint folder",
    "--data.shards=/no/such/*.tar": "no file matches '/no/such/*.tar'",
    "--data.caption=xml": "caption is 'xml'; allowed are 'txt' and 'json:FIELD'",
    "--data.height=15": "an image of height 15 and width 16 does not fit",
    "--data.units_per_shard=0": "units_per_shard is 0",
    "--data.part=2/2": "data.part is '2/2', allowed: 'K/N' with K = 0 to N - 1",
    "--data.max_failures=5.5": "data.max_failures is '5.5', allowed: a count such as 100, or a share such as 5%",
    "--data.shards=pipe:cat a.tar": "'pipe:... a.tar' runs a command in a shell: add --data.allow_pipe=true",
    "--data.shards=@/no/list.txt": "'@/no/list.txt': the list cannot be read",
    "--model.guidance_scale=0.5": "guidance_scale is 0.5, allowed: at least 1",
    "--model.solver=newton": "newton",
    "--model.batch_size=0": "model.batch_size is 0, allowed: at least 1",
    "--model.num_steps=0": "num_steps is 0, allowed: 1 to 999",
    "--output.dir=/proc/nothing": "output folder '/proc/nothing' cannot be written",
    "--output.part_images=0": "output.part_images is 0",
    "--trainer.inference_mode=true": "set --trainer.inference_mode=false",
    "--trainer.precision=bf16-mixed": "--trainer.precision is 'bf16-mixed', leave it out: set --model.precision",
    "--trainer.precision=bf16-true": "set --model.precision",
    "--trainer.precision=64-true": "set --model.precision",
    "--trainer.plugins=DoublePrecision": "a plugin sets the precision '64-true', allowed: 32-true; set --model",
    "--trainer.max_time=00:00:10:00": "set --output.stop_after to a number of minutes",
    "--trainer.fast_dev_run=true": "set --data.limit to a number of images",
    "--trainer.limit_predict_batches=3": "set --data.limit to a number of images",
    "--trainer.max_epochs=2": "--trainer.max_epochs is 2, leave it out: it belongs to training",
    "--trainer.accumulate_grad_batches=2": "--trainer.accumulate_grad_batches is 2, leave it out",
    "--trainer.use_distributed_sampler=true": "shares its work units among the ranks by itself",
    "--output.stop_after=0": "output.stop_after is 0.0, allowed: more than 0 and at most 1000000 minutes",
    "--output.stop_after=.nan": "output.stop_after is nan, allowed: more than 0 and at most 1000000 minutes",
    "--output.stop_after=1e7": "output.stop_after is 10000000.0, allowed: more than 0",
    "--trainer.devices=none": "`devices` selected with",
    "--config=/no/such.yaml": "/no/such.yaml",
}


@pytest.mark.parametrize("argument", WRONG)
def test_an_invalid_setting_is_refused_in_one_line_before_a_model_is_loaded(
    tiny_model: Path,
    shards: str,
    tmp_path: Path,
    argument: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(StableDiffusion, "load", lambda *_: pytest.fail("a model was loaded"))
    assert main([*arguments(tiny_model, shards, tmp_path / "out"), argument]) == 2
    captured = capsys.readouterr()
    assert WRONG[argument] in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_the_authors_solver_refuses_more_steps_than_its_learning_rate_has(
    tiny_model: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(StableDiffusion, "load", lambda *_: pytest.fail("a model was loaded"))
    flags = ["--model.solver=authors", "--model.num_steps=101"]
    assert main([*arguments(tiny_model, shards, tmp_path / "out"), *flags]) == 2
    captured = capsys.readouterr()
    assert "num_steps is 101, allowed with the solver 'authors': 1 to 100, where the learning rate" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("precision", ["32", "32-true"])
def test_the_trainer_may_be_told_its_own_precision(tiny_model: Path, shards: str, tmp_path: Path, precision: str):
    flag = f"--trainer.precision={precision}"
    assert main([*arguments(tiny_model, shards, tmp_path / "out"), flag]) == 0


def test_after_a_time_the_job_stops_and_the_same_command_resumes_it(
    tiny_model: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    job = arguments(tiny_model, shards, tmp_path / "out")
    assert main([*job, "--output.stop_after=1e-9"]) == 75
    done = ids(tmp_path / "out")
    assert len(done) < 10
    assert main([*job, "--output.stop_after=1e4"]) == 0
    assert "10 done, 0 failed, 0 missing of 10 images" in capsys.readouterr().out
    assert set(done) <= set(ids(tmp_path / "out"))


def test_every_trainer_flag_is_either_used_or_refused():
    used = {"accelerator", "benchmark", "callbacks", "default_root_dir", "deterministic", "detect_anomaly", "devices"}
    used |= {"inference_mode", "logger", "num_nodes", "plugins", "profiler", "strategy"}
    parameters = set(inspect.signature(Trainer).parameters)
    assert used <= parameters <= used | set(REFUSED), "older versions of Lightning lack some that are refused"
    assert not used & set(REFUSED)


def test_an_unknown_key_in_a_config_is_refused_in_one_line(
    tiny_model: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = tmp_path / "job.yaml"
    config.write_text("model:\n  guidance: 7.5\n")
    command, *rest = arguments(tiny_model, shards, tmp_path / "out")
    assert main([command, f"--config={config}", *rest]) == 2
    captured = capsys.readouterr()
    assert "guidance" in captured.err
    assert captured.err.count("\n") == 1


def test_a_run_refuses_other_settings_and_prints_the_difference(
    tiny_model: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments(tiny_model, shards, tmp_path / "out")) == 0
    assert main([*arguments(tiny_model, shards, tmp_path / "out"), "--model.guidance_scale=3"]) == 2
    assert "model.guidance_scale: 7.5 there, 3.0 now" in capsys.readouterr().err


def test_status_refuses_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["status", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err


def test_the_shipped_config_sets_the_job(capsys: pytest.CaptureFixture[str]):
    config = Path(__file__).parents[2] / "configs" / "demo.yaml"
    with pytest.raises(SystemExit) as end:
        main(["invert", f"--config={config}", "--print_config"])
    assert end.value.code == 0
    assert "guidance_scale: 7.5" in capsys.readouterr().out
