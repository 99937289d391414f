"""The job on a virtual device commits its images, and accounts for its time."""

import json
from pathlib import Path

import pytest

from nti_batch.benchmarks.virtual_device import main, true_size
from nti_batch.benchmarks.virtual_networks import CALLS, VirtualDevice
from nti_batch.output.serialization import pack_tensors
from nti_batch.settings import InversionRunSettings

FAST = Path(__file__).parents[2] / "configs" / "fast.yaml"


@pytest.mark.parametrize(("config", "updates"), [([], 10), ([f"--config={FAST}"], 9 // 2)])
def test_the_time_of_a_job_is_that_of_its_calls_and_the_rest(
    config: list[str], updates: int, capsys: pytest.CaptureFixture[str]
):
    flags = ["--images=2", "--model.num_steps=2", "--model.num_inner_steps=5", "--model.batch_size=2", *config]
    assert main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 2
    # the way up, the prompt, and each update's candidate with the accepted one
    assert found["forward_passes"] >= 4 + updates
    unet = found["device_seconds"]["UNet forward"] + found["device_seconds"]["UNet backward"]
    assert found["outside_unet"] == pytest.approx(1 - unet / found["seconds"])
    assert 0 < found["waiting_seconds"] < found["seconds"]
    assert main(flags) == 0
    assert "outside the UNet" in capsys.readouterr().out


def test_a_wrong_flag_is_named(capsys: pytest.CaptureFixture[str]):
    assert main(["--model.num_steps=0"]) == 2
    assert "num_steps is 0" in capsys.readouterr().err


def test_a_call_takes_the_measured_time_at_the_measured_sizes(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr("nti_batch.benchmarks.virtual_networks.time.sleep", slept.append)
    device = VirtualDevice()
    for kind, sizes in CALLS.items():
        for size, milliseconds in sizes.items():
            device.call(kind, size)
            assert slept.pop() == pytest.approx(size * milliseconds / 1000)
    device.call("UNet forward", 128)
    assert slept == [pytest.approx(128 * 2.79 / 1000)]


def test_embeddings_of_the_true_size_compress_like_those_of_an_adam_run():
    """A byte a value in float32's place is 4; the levels of an Adam run have an entropy of half a byte."""
    from dataclasses import replace

    from helpers.inversions import SETTINGS

    settings: InversionRunSettings = replace(SETTINGS, storage="compact")
    start, rows = true_size(settings, [True, False, True, True])
    assert start.shape == (77, 768) and (rows[1] == rows[0]).all() and not (rows[2] == rows[1]).all()
    payload = pack_tensors("compact", rows[:, :1, :1], start, rows, None)
    assert 0.45 < (len(payload) - 2 * start.numel()) / (3 * start.numel()) < 0.6
