"""The comparison with the authors' loop counts what it should, and both sides do the same inversion."""

import json
from pathlib import Path

import pytest
import torch
from tiny import captioned, write_shard

from nti_batch.benchmarks.authors_loop import authors_loop
from nti_batch.benchmarks.job_loop import job_loop, load_images
from nti_batch.benchmarks.stopwatch import UNetClock
from nti_batch.cli import main
from nti_batch.datamodule import InversionDataModule
from nti_batch.diffusion.null_text import NullTextSettings
from nti_batch.stable_diffusion import ModelSource, StableDiffusion

NEVER = NullTextSettings(num_inner_steps=2, early_stop_epsilon=0, early_stop_growth=0)


@pytest.fixture(scope="module")
def networks(tiny_model: Path) -> StableDiffusion:
    return StableDiffusion.load(ModelSource(str(tiny_model)))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards") / "s.tar", captioned(4))


def test_with_the_early_stop_off_both_sides_find_the_same(networks: StableDiffusion, shard: Path):
    images, schedule = load_images(InversionDataModule(str(shard)), 16, 2), networks.schedule(3)
    clock = UNetClock(networks.predict_noise, networks.device)
    ours = job_loop(networks, clock, images, schedule, NEVER, slots=2, storage="float32")
    for image, found in zip(images, ours, strict=True):
        theirs = authors_loop(networks, clock, image, schedule, NEVER)
        torch.testing.assert_close(found.null_embeddings, theirs.null_embeddings, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(found.latents, theirs.latents, atol=1e-3, rtol=1e-3)
        # inversion, e_c and two steps; then a last look here, and a call of two there
        assert (found.forwards, found.backwards) == (3 + 3 * (1 + 2 + 1), 3 * 2)
        assert (theirs.forwards, theirs.backwards) == (3 + 3 * (1 + 2 + 2), 3 * 2)
    assert not any(p.requires_grad or p.grad is not None for p in networks.unet.parameters())


def test_the_command_prints_both_sides(tiny_model: Path, shard: Path, capsys: pytest.CaptureFixture[str]):
    command = ["bench", f"--model.name={tiny_model}", f"--data.shards={shard}", "--images=4"]
    command += ["--model.slots=2", "--model.num_steps=3"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for side in (found["job"], found["authors"]):
        assert found["psnr_vae"] - side["psnr"] == pytest.approx(side["gap"], abs=1e-3)
        assert 0 < side["unet_share"] < 1 and side["peak_bytes"] > 50 * 2**20 and side["distance"] > 0
    assert found["speedup"] == pytest.approx(found["job"]["images_per_hour"] / found["authors"]["images_per_hour"])
    assert found["job"]["forward_equivalents"] == found["job"]["forwards"] + found["job"]["backwards"]
    assert found["authors"]["forward_equivalents"] == found["authors"]["forwards"] + 2 * found["authors"]["backwards"]
    assert found["job"]["stored_bytes"] == found["authors"]["stored_bytes"]
    assert main(command) == 0
    assert "forward equivalents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("--images=9", "--images is 9, and"),
        ("--rounds=0", "--rounds is 0, allowed: 1 to the number of images, 4"),
        ("--model.name=/none", "model '/none' is no folder"),
        ("--model.solver=sgd", "model.solver"),
    ],
)
def test_a_wrong_setting_is_refused(
    tiny_model: Path, shard: Path, wrong: str, text: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", f"--model.name={tiny_model}", f"--data.shards={shard}", "--images=4", wrong]) == 2
    assert text in capsys.readouterr().err
