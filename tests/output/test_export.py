"""An export rebuilds the image in diffusers' own pipeline and in the community's loop; docs/use.md runs."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from helpers.crashes import fill_disk_at, largest_file
from helpers.inversions import KEYS, ORIGIN, SETTINGS, inversion
from helpers.jobs import arguments
from helpers.runs import create_run
from helpers.tiny import captioned, write_shard
from safetensors.torch import load_file
from torch import Tensor

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.data.samples import RawSample, read_unit
from nti_batch.editing.reconstruct import reconstruct
from nti_batch.jobs.flags import SAMPLES
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output import export
from nti_batch.output.inversions import InversionRun, read_part
from nti_batch.records import Failure, WorkUnit
from nti_batch.scores.metrics import psnr

USE = Path(__file__).parents[2] / "docs" / "use.md"
SAME_IMAGE = 50.0
"""PSNR in dB of two images that differ by rounding: to levels of 8 bits, and in the order of additions."""

OTHER_IMAGE = 30.0


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `demo-output`, two photographs of the demo in six steps."""
    folder = tmp_path_factory.mktemp("demo")
    members: dict[str, bytes] = {}
    for sample in read_unit(WorkUnit("photographs", str(SAMPLES / "photographs-000000.tar"), 0, 1), "txt"):
        if isinstance(sample, RawSample) and sample.key in ("cat", "coffee"):
            members |= {f"{sample.key}.png": sample.image, f"{sample.key}.txt": sample.prompt.encode()}
    shard = write_shard(folder / "photographs-000000.tar", members)
    (folder / "photographs").mkdir()
    (folder / "photographs" / "coffee.png").write_bytes(members["coffee.png"])
    job = ["invert", "--model.name=demo", "--model.num_steps=6", f"--data.shards={shard}", "--trainer.accelerator=cpu"]
    assert main([*job, f"--output.dir={folder / 'demo-output'}", "--data.units_per_shard=1"]) == 0
    return folder


@pytest.fixture(scope="module")
def networks() -> StableDiffusion:
    return StableDiffusion.load(ModelSource("demo"))


@pytest.fixture(scope="module")
def rebuilt(demo: Path, networks: StableDiffusion) -> Tensor:
    """The package's own reconstruction of the coffee, [1, 3, 64, 64]."""
    (coffee,) = read_inversions(demo / "demo-output", [("photographs-000000", "coffee")])
    return reconstruct(networks, [coffee], guided=True)


def as_tensor(image: object) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def exported(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- other programs ---


@pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork:DeprecationWarning")
def test_the_examples_run_and_the_stock_pipeline_makes_our_reconstruction(
    demo: Path, rebuilt: Tensor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(demo)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", USE.read_text(), re.DOTALL | re.MULTILINE)
    assert [language for language, _ in blocks] == ["python", "python", "python", "python", "bash", "python"]
    for language, block in blocks:
        if language == "bash":
            assert main(shlex.split(block)[1:]) == 0
        else:
            exec(block, names)
    assert psnr(as_tensor(names["image"]), rebuilt).item() > SAME_IMAGE
    assert names["pipeline"].scheduler.timesteps.tolist() == names["call"]["timesteps"]
    names["replace_embedding"] = lambda pipeline, step, timestep, tensors: tensors
    exec(blocks[-1][1][blocks[-1][1].index("image = ") :], names)
    assert psnr(as_tensor(names["image"]), rebuilt).item() < OTHER_IMAGE


@torch.no_grad()
def community_loop(
    networks: StableDiffusion, prompt: str, call: dict[str, Any], inverted_latent: Tensor, uncond_embeddings: Tensor
) -> Tensor:
    """Do as `NullTextPipeline.__call__`: the i-th embedding belongs to the i-th timestep of the scheduler."""
    config = json.loads((Path(call["model"]) / "scheduler" / "scheduler_config.json").read_text())
    scheduler = DDIMScheduler.from_config(config, **call["scheduler"])
    scheduler.set_timesteps(call["num_inference_steps"])
    embedded, latents = networks.embed_prompts([prompt]), inverted_latent
    for i, t in enumerate(scheduler.timesteps):
        without = networks.unet(latents, t, encoder_hidden_states=uncond_embeddings[i]).sample
        noise = networks.unet(latents, t, encoder_hidden_states=embedded).sample
        noise = without + call["guidance_scale"] * (noise - without)
        latents = scheduler.step(noise, t, latents).prev_sample
    return networks.decode_latents(latents)


def test_the_community_pipelines_loop_makes_our_reconstruction(
    demo: Path, networks: StableDiffusion, rebuilt: Tensor, tmp_path: Path
):
    assert main(["export", str(demo / "demo-output"), "--output", str(tmp_path), "--key", "coffee"]) == 0
    assert exported(tmp_path) == ["photographs-000000/coffee.json", "photographs-000000/coffee.safetensors"]
    call = json.loads((tmp_path / "photographs-000000" / "coffee.json").read_text())
    tensors = load_file(tmp_path / "photographs-000000" / "coffee.safetensors")
    assert psnr(community_loop(networks, call["prompt"], call, **tensors), rebuilt).item() > SAME_IMAGE
    tensors["uncond_embeddings"] = networks.embed_prompts([""]).expand_as(tensors["uncond_embeddings"])
    assert psnr(community_loop(networks, call["prompt"], call, **tensors), rebuilt).item() < OTHER_IMAGE


@pytest.mark.parametrize("model", ["tiny_v_model", "tiny_zero_snr_model"])
def test_the_loop_follows_the_prediction_type_and_the_timesteps_of_a_model(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
):
    folder: Path = request.getfixturevalue(model)
    out, exports = tmp_path / "out", tmp_path / "exports"
    shard = write_shard(tmp_path / "a.tar", captioned(1))
    assert main(arguments(folder, str(shard), out)) == 0
    assert main(["export", str(out), "--output", str(exports)]) == 0
    call = json.loads((exports / "a" / "000.json").read_text())
    networks = StableDiffusion.load(ModelSource(str(folder)))
    (stored,) = read_inversions(out)
    made = community_loop(networks, stored.prompt, call, **load_file(exports / "a" / "000.safetensors"))
    assert psnr(made, reconstruct(networks, [stored], guided=True)).item() > SAME_IMAGE


def test_the_pooled_embeddings_of_xl_are_a_tensor_of_their_own(tiny_xl_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "a.tar", captioned(1))
    pooled = "--model.optimize_pooled=true"
    assert main([*arguments(tiny_xl_model, str(shard), tmp_path / "out"), pooled]) == 0
    assert main(["export", str(tmp_path / "out"), "--output", str(tmp_path)]) == 0
    tensors = load_file(tmp_path / "a" / "000.safetensors")
    (stored,) = read_inversions(tmp_path / "out")
    # embeddings of 8 + 12 values, pooled ones of 6
    assert torch.equal(tensors["uncond_embeddings"][:, 0], stored.null_embeddings[:, :-1])
    assert torch.equal(tensors["uncond_pooled_embeddings"][:, 0], stored.null_embeddings[:, -1, :6])
    assert tensors["uncond_pooled_embeddings"].any() and tensors["uncond_embeddings"].shape[-1] == 20


# --- files ---


@pytest.fixture
def run(tmp_path: Path) -> InversionRun:
    """Two shards with the same keys, one of them failed in each."""
    run = create_run(tmp_path / "out", SETTINGS, ["a.tar", "..tar"])
    for shard in ("a", "."):
        part = run.new_part(unit := WorkUnit(shard, f"{shard}.tar", 0, 3), ORIGIN)
        for key in KEYS:
            part.add(inversion(key, unit))
        part.add_failure(Failure(unit, "bad", "image", "it is HTML"))
        part.commit()
    return run


def test_every_inversion_has_files_of_its_own_that_hold_it(run: InversionRun, tmp_path: Path):
    folder = tmp_path / "exported"
    assert main(["export", str(run.out), "--output", str(folder)]) == 3
    stored = {(s.shard, s.key): s for s in read_inversions(run.out)}
    found = set()
    for path in folder.glob("*/*.json"):
        call, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
        expected = stored[call["shard"], call["key"]]
        found.add((call["shard"], call["key"]))
        assert torch.equal(tensors["inverted_latent"][0], expected.noise_latents)
        assert tensors["uncond_embeddings"].shape == (2, 1, 3, 5)
        assert torch.equal(tensors["uncond_embeddings"][:, 0], expected.null_embeddings)
        assert (call["prompt"], call["timesteps"], call["guidance_scale"]) == (expected.prompt, [501, 1], 7.5)
    assert found == set(stored)
    assert len(exported(folder)) == 2 * len(stored)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "exported"}


def test_failed_images_are_counted_and_left_out(run: InversionRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(run.out), "--output", str(tmp_path / "exported")]) == 3
    assert f"{2 * len(KEYS)} inversions written, 2 left out, whose inversion has failed" in capsys.readouterr().out
    only = ["--shard", "a", "--key", "000", "a/b"]
    assert main(["export", str(run.out), "--output", str(tmp_path / "chosen"), *only]) == 0
    assert len(exported(tmp_path / "chosen")) == 4


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("call", [0, 1, 2, 3, 4])
def test_an_export_that_fails_at_any_step_is_made_whole_by_the_next(
    run: InversionRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, call: int
):
    whole, folder = tmp_path / "whole", tmp_path / "exported"
    main(["export", str(run.out), "--output", str(whole)])
    with monkeypatch.context() as patch:
        fill_disk_at(patch, failing, call)
        assert main(["export", str(run.out), "--output", str(folder)]) == 1
    assert main(["export", str(run.out), "--output", str(folder)]) == 3
    assert exported(folder) == exported(whole)
    assert all((folder / name).read_bytes() == (whole / name).read_bytes() for name in exported(whole))


def test_a_disk_that_fills_up_is_named_and_leaves_no_file_that_is_cut(
    run: InversionRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "exported"
    with largest_file(200):
        assert main(["export", str(run.out), "--output", str(folder)]) == 1
    assert "000.safetensors cannot be written: File too large" in capsys.readouterr().err
    assert list(folder.glob("*/*")) == []
    assert main(["export", str(run.out), "--output", str(folder)]) == 3
    assert {path.suffix for path in folder.glob("*/*")} == {".json", ".safetensors"}


def test_an_existing_export_is_written_again_only_for_another_inversion(
    run: InversionRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["export", str(run.out), "--output", str(tmp_path / "exported"), "--shard", "a"]
    main(command)
    notes = sorted((tmp_path / "exported").glob("a/*.json"))
    notes[0].write_text(notes[0].read_text().replace('"inversion_sha256": "', '"inversion_sha256": "0'))
    notes[1].write_text("{")
    notes[2].with_suffix(".safetensors").unlink()
    capsys.readouterr()
    assert main(command) == 3
    assert f"3 inversions written, {len(KEYS) - 3} were there" in capsys.readouterr().out


def test_a_damaged_part_is_named_and_the_others_are_exported(
    run: InversionRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (run.folder / "a.0of3.00000.tar").write_bytes(b"")
    assert main(["export", str(run.out), "--output", str(tmp_path / "exported")]) == 1
    said = capsys.readouterr()
    assert re.search(r"a\.0of3\.00000\.tar is damaged: .*: its inversions are left out", said.err)
    assert f"{len(KEYS)} inversions written" in said.out
    assert len(exported(tmp_path / "exported")) == 2 * len(KEYS)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--key", "000", "other"], "has no such key: 'other'"),
        (["--shard", "b"], "has no such shard: 'b'"),
    ],
)
def test_an_unknown_shard_or_key_is_named(
    run: InversionRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], text: str
):
    assert main(["export", str(run.out), "--output", str(tmp_path / "exported"), *more]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("method", ["direct", "ddpm"])
def test_a_method_that_rebuilds_by_its_pivot_is_refused(
    tiny_model: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
):
    shard = write_shard(tmp_path / "a.tar", captioned(1))
    assert main([*arguments(tiny_model, shard, tmp_path / "out"), f"--model.method={method}"]) == 0
    assert main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "exported")]) == 2
    assert f"--model.method={method}, whose embeddings do not rebuild an image" in capsys.readouterr().err


def test_a_run_is_exported_part_by_part(run: InversionRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before a part is read, all parts before it are written."""
    counts: list[int] = []

    def counting(*arguments: Any) -> object:
        counts.append(len(list(tmp_path.glob("exported/*/*.json"))))
        return read_part(*arguments)

    monkeypatch.setattr(export, "read_part", counting)
    main(["export", str(run.out), "--output", str(tmp_path / "exported")])
    assert counts == [0, len(KEYS)]
