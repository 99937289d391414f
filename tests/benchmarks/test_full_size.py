"""A checkpoint of full-size shapes works with every command, and the benchmark on it prints what it can measure."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.jobs import rows
from helpers.tiny import captioned, write_shard

from nti_batch.benchmarks import full_size, full_size_parts, full_size_table, unet_calls, update_counts
from nti_batch.benchmarks.full_size import FAMILIES, Family, Shapes, random_text_encoders, random_vae
from nti_batch.benchmarks.full_size_setup import FullSize, Row
from nti_batch.benchmarks.job_loop import load_images
from nti_batch.benchmarks.reference_loop import reference_loop
from nti_batch.benchmarks.unet_calls import Calls
from nti_batch.benchmarks.update_counts import (
    fixed_reference_updates,
    fixed_updates,
    measured_counts,
    whole_counts,
)
from nti_batch.cli import main
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion

BLOCKS = {"block_out_channels": (8, 8), "norm_num_groups": 2, "layers_per_block": 1}
UNET = BLOCKS | {"sample_size": 8, "attention_head_dim": 2, "cross_attention_dim": 16}
TEXT: dict[str, Any] = full_size._CLIP_L | {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "projection_dim": 16,
}
VAE: dict[str, Any] = {
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
DOWN_UP: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
TINY: dict[Family, Shapes] = {
    "1.x": Shapes(unet=UNET | DOWN_UP, vae=VAE, text_encoders=[TEXT]),
    "xl": Shapes(
        unet=UNET
        | DOWN_UP
        | {
            "cross_attention_dim": 32,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 16 + 6 * 4,
        },
        vae=VAE,
        text_encoders=[TEXT, TEXT],
    ),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the families few channels, and the benchmark few steps; compile nothing."""
    for family, shapes in TINY.items():
        monkeypatch.setitem(FAMILIES, family, shapes)
    monkeypatch.setitem(unet_calls.MATRIX_SIDES, "cpu", 64)
    monkeypatch.setattr(full_size_table, "BATCH_SIZES", (1, 2))
    monkeypatch.setattr(full_size_table, "MORE_BATCH_SIZES", ())
    monkeypatch.setattr(full_size_parts, "NUM_STEPS", 3)
    monkeypatch.setattr(full_size_parts, "REFERENCE_STEPS", 2)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def test_the_full_size_networks_beside_the_unet_have_the_published_number_of_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    meta = torch.device("meta")
    expected: dict[Family, list[int]] = {"1.x": [123_060_480], "2.1": [340_387_840], "xl": [123_060_480, 694_659_840]}
    for family, counts in expected.items():
        encoders = random_text_encoders(meta, family)
        assert [sum(p.numel() for p in encoder.parameters()) for encoder in encoders] == counts
        assert sum(p.numel() for p in random_vae(meta, family).parameters()) == 83_653_863


@pytest.mark.parametrize("family", ["1.x", "xl"])
def test_a_written_checkpoint_and_its_images_can_be_inverted_edited_and_verified(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["full_size", str(tmp_path), f"--family={family}", "--images=2", "--device=cpu"])
    full_size.main()
    flags = capsys.readouterr().out.split(": ")[1].split()
    run, edited = tmp_path / "run", tmp_path / "edited"
    steps = ["--model.num_steps=2", "--trainer.accelerator=cpu"]
    assert main(["invert", *flags, *steps, f"--output.dir={run}"]) == 0
    assert len(rows(run)) == 2
    assert main(["edit", f"--data.inversions={run}", f"--output.dir={edited}", "--trainer.accelerator=cpu"]) == 0
    assert main(["verify", str(run), "--recompute=1"]) == 0


def test_whole_counts_keep_the_sum_and_the_order():
    assert whole_counts([0.4, 0.4, 0.4, 0.4, 0.4], 5) == [0, 1, 0, 1, 0]
    assert whole_counts([10, 9, 1, 0], 4) == [10, 9, 1, 0]
    assert whole_counts([10, 8, 2, 0], 2) == [9, 1]


def test_the_measured_lists_have_fifty_timesteps_and_their_settings_those_of_the_configurations():
    counts = measured_counts()
    assert {method: len(of_method) for method, of_method in counts.items()} == dict.fromkeys(update_counts.SETTINGS, 50)
    assert sum(counts["fast"]) < sum(counts["default"]) / 4
    assert all(0 <= n <= 10 for of_method in counts.values() for n in of_method)


def test_the_lists_are_measured_anew_by_one_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(update_counts, "FILE", tmp_path / "counts.json")
    monkeypatch.setattr(update_counts, "NUM_STEPS", 2)
    monkeypatch.setattr(sys, "argv", ["update_counts", "--images=1"])
    update_counts.main()
    assert {m: len(c) for m, c in measured_counts().items()} == {"default": 2, "fast": 2, "reference": 2}


@pytest.mark.parametrize("counts", [[0, 2, 1], [2, 0, 0]])
def test_a_job_takes_the_given_number_of_updates(counts: list[int], tiny_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "s.tar", captioned(3))
    flags = [f"--model.name={tiny_model}", f"--data.shards={shard}", "--model.num_steps=3", "--trainer.accelerator=cpu"]
    with fixed_updates(counts):
        assert main(["invert", *flags, f"--output.dir={tmp_path / 'out'}", "--model.batch_size=2"]) == 0
    for row in rows(tmp_path / "out").values():
        assert row.inner_steps == sum(counts)
    assert InversionSettings().threshold_at(1, 3) > 0


def test_a_timestep_with_all_updates_has_the_passes_that_the_table_computes_with(tiny_model: Path, tmp_path: Path):
    shard, updates = write_shard(tmp_path / "s.tar", captioned(1)), full_size_parts.MAX_UPDATES
    flags = [f"--model.name={tiny_model}", f"--data.shards={shard}", "--model.num_steps=3", "--trainer.accelerator=cpu"]
    assert updates == InversionSettings().num_inner_steps
    with fixed_updates([updates] * 3):
        assert main(["invert", *flags, f"--output.dir={tmp_path / 'out'}", "--model.batch_size=2"]) == 0
    (row,) = rows(tmp_path / "out").values()
    assert row.forwards == 3 * (full_size_parts.FORWARD_PASSES + updates)
    assert row.backwards == 3 * updates


def test_the_reference_loop_takes_the_given_number_of_updates_and_at_least_one(tiny_model: Path, tmp_path: Path):
    networks = StableDiffusion.load(ModelSource(str(tiny_model)))
    images = load_images({"s": str(write_shard(tmp_path / "s.tar", captioned(2)))}, "txt", (16, 16), 2)
    with fixed_reference_updates([3, 0, 2]):
        for image in images:
            found = reference_loop(networks, networks.predict, image, networks.schedule(3), InversionSettings())
            assert found.backwards == 3 + 1 + 2


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """Lines of JSON by their part; of rows with the same part, the last."""
    return {row["part"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}


def run_bench(tmp_path: Path, *more: str) -> int:
    return main(["bench", "--full-size", "--device=cpu", "--batch_size=2", f"--folder={tmp_path}", *more])


def test_every_figure_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_bench(tmp_path, "--json", "--minutes=60") == 0
    table = printed(capsys)
    assert not [row for row in table.values() if "error" in row or "skipped" in row]
    assert all(row["device"] == "cpu" for row in table.values())
    for way in ("eager", "compiled"):
        for kind in ("forward", "forward and backward"):
            row = table[f"{way}, {kind}"]
            assert row["TFLOP/s"] > 0 and row["ms_an_image"] > 0
        for method in ("fast", "default"):
            job = table[f"job, {way}, updates of {method}"]
            assert job["images_an_hour"] > 0 and 0 < job["device_idle_share"] < 1
            assert job["images"] == (5 if method == "fast" else 4)
            assert 0 < job["start_s"] + job["end_s"] < job["seconds"]
            where = table[f"job, {way}, updates of {method}, of an image"]
            assert {"UNet_ms", "VAE_ms", "text_ms", "decoding_ms", "packing_ms", "writing_ms"} <= where.keys()
            assert all(value > 0 for name, value in where.items() if name.endswith("_ms"))
            times = table[f"job, {way}, updates of {method}, against the reference loop in float32"]["times"]
            rates = job["images_an_hour"], table["reference loop, float32"]["images_an_hour"]
            assert times == pytest.approx(rates[0] / rates[1], rel=1e-2)
    updates = sum(whole_counts(measured_counts()["default"], 3))
    assert table["job, eager, updates of default"]["backward_passes"] == updates
    assert table["kernels, eager, forward"]["convolution"]
    assert not list(tmp_path.iterdir()), "the checkpoint is removed"


def test_a_part_that_fails_or_finds_no_time_ends_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    make = Calls.make

    def too_large(calls: Calls, predict: Any, kind: Any, batch_size: int) -> Any:
        if batch_size > 1:
            raise torch.OutOfMemoryError(f"{batch_size} images\nand a long story")
        return make(calls, predict, kind, batch_size)

    monkeypatch.setattr(Calls, "make", too_large)
    monkeypatch.setattr(FullSize, "seconds_left", 9.0)
    assert run_bench(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "eager, batch size 2: error OutOfMemoryError: 2 images" in lines
    assert any(line.startswith("eager, forward and backward: batch size 1, ms an image ") for line in lines)
    (skipped,) = [line for line in lines if line.startswith("job, eager, updates of default: ")]
    assert skipped.endswith("skipped it takes about 60 s, and 9 s are left; a larger --minutes measures it")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("--family=3", "family"),
        ("--batch_size=0", "batch_size"),
        ("--minutes=-1", "minutes"),
        ("--folder=/none", "folder"),
        ("--device=abacus", "--device is 'abacus', allowed: one that this machine has"),
        ("--device=cuda:77", "--device is 'cuda:77', allowed: one that this machine has"),
        ("--model.name=demo", "model.name"),
    ],
)
def test_a_wrong_flag_is_refused(wrong: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_bench(tmp_path, wrong) == 2
    assert text in capsys.readouterr().err


def test_a_line_has_units_and_readable_numbers():
    row = Row("job", {"images_an_hour": 4679.3, "share": 0.34567, "peak_GB": None, "batch_size": 16})
    assert row.line() == "job: images an hour 4,679, share 0.346, peak GB unknown, batch size 16"
    assert row.to_json() == {"part": "job"} | row.values | {"images_an_hour": 4679.0, "share": 0.3457}
