"""The job on a virtual device commits its images, and accounts for its time."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.inversions import SETTINGS

from nti_batch.benchmarks.virtual_device import main, true_size
from nti_batch.benchmarks.virtual_networks import CALLS, VirtualCopy, VirtualDevice
from nti_batch.output.serialization import pack_tensors

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


def test_several_devices_are_compared_with_one(capsys: pytest.CaptureFixture[str]):
    flags = ["--images=2", "--model.num_steps=2", "--model.batch_size=2", f"--config={FAST}"]
    assert main([*flags, "--devices=2", "--rounds=1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == 2 and found["speedups"] == [found["speedup"]]
    assert found["speedup"] > 0


def test_a_wrong_flag_is_named(capsys: pytest.CaptureFixture[str]):
    assert main(["--model.num_steps=0"]) == 2
    assert "num_steps is 0" in capsys.readouterr().err


def test_a_call_takes_the_measured_time_at_the_measured_sizes():
    device = VirtualDevice()
    for kind, sizes in CALLS.items():
        for size, milliseconds in sizes.items():
            before = device.seconds[kind]
            device.call(kind, size)
            assert device.seconds[kind] - before == pytest.approx(size * milliseconds / 1000)
    before = device.seconds["UNet forward"]
    device.call("UNet forward", 128)
    assert device.seconds["UNet forward"] - before == pytest.approx(128 * 2.79 / 1000)


def test_calls_wait_for_each_other_and_only_a_reader_waits_for_them():
    device = VirtualDevice()
    start = time.perf_counter()
    device.call("UNet forward", 16)
    copy = VirtualCopy(torch.ones(2), device)
    device.call("UNet forward", 64)
    assert not copy.has_arrived
    assert copy.tolist() == [1.0, 1.0]
    assert time.perf_counter() >= start + 16 * 3.08e-3
    assert device.busy_until >= start + 16 * 3.08e-3 + 64 * 2.79e-3


def test_embeddings_of_the_true_size_compress_like_those_of_an_adam_run():
    """A byte a value in float32's place is 4; the levels of an Adam run have an entropy of half a byte."""
    settings = replace(SETTINGS, storage="compact")
    start, rows = true_size(settings, [True, False, True, True])
    assert start.shape == (77, 768) and (rows[1] == rows[0]).all() and not (rows[2] == rows[1]).all()
    payload = pack_tensors("compact", rows[:, :1, :1], start, rows, None)
    assert 0.45 < (len(payload) - 2 * start.numel()) / (3 * start.numel()) < 0.6
