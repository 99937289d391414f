"""The methods without optimization: against plain sampling, in every storage, and by the command."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from helpers.fakes import rowwise, stable_diffusion_schedule
from helpers.inversions import SETTINGS
from helpers.jobs import arguments
from helpers.pools import EMPTY, HostTraffic, images, invert
from helpers.tiny import captioned, png, write_shard
from torch import Tensor

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.data.images import decode_image
from nti_batch.diffusion.ddim import ddim_sample, ddim_step
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.settings import InversionSettings, Method
from nti_batch.editing.reconstruct import reconstruct
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.inversions import open_inversions
from nti_batch.output.manifest_rows import Metadata
from nti_batch.output.serialization import StoredInversion, pack_tensors, unpack_tensors
from nti_batch.report import preview
from nti_batch.report.record_checks import check_inversion
from nti_batch.scores.metrics import psnr

STORAGES = get_args(Storage)
METHODS = get_args(Method)
KEEP_PIVOT: tuple[Method, ...] = ("direct", "ddpm")
PLAIN = [method for method in METHODS if method != "null-text"]
SCHEDULE = stable_diffusion_schedule(50)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("scale", [1.0, 3.0, 7.5, 20.0])
def test_direct_inversion_comes_back_to_where_it_started_at_any_guidance(scale: float, storage: Storage):
    settings = InversionSettings(method="direct", guidance_scale=scale)
    states, _ = invert(rowwise, SCHEDULE, settings, images(4), batch_size=2, storage=storage)
    for state, (latents, _) in zip(states, images(4), strict=True):
        rounded = latents if storage == "float32" else latents.half().float()
        assert torch.equal(state.latents, rounded)
        assert torch.equal(state.pivot[-1], rounded)
        torch.testing.assert_close(state.pivot, state.trajectory[:-1].flip(0), atol=0, rtol=1e-3)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_losses_of_direct_inversion_are_of_what_it_adds_back(storage: Storage):
    ((latents, prompt),) = images(3)[2:]
    (state,), _ = invert(rowwise, SCHEDULE, InversionSettings(method="direct"), [(latents, prompt)], storage=storage)
    for i, t in enumerate(range(50, 0, -1)):
        here = torch.tensor([t])
        z, timestep = (state.pivot[i - 1] if i else state.trajectory[50])[None], SCHEDULE.network_timesteps[here]
        noise = 7.5 * rowwise(z, timestep, prompt[None]) - 6.5 * rowwise(z, timestep, EMPTY[None])
        added = state.trajectory[t - 1] - ddim_step(SCHEDULE, z, noise, here, here - 1)
        assert state.losses[i] == pytest.approx(added.square().mean().item(), rel=1e-3)
    assert max(state.losses) > 1e-3, "guidance should lead away"


def test_negative_prompt_inversion_is_ddim_at_guidance_1():
    (state,), _ = invert(rowwise, SCHEDULE, InversionSettings(method="negative-prompt"), images(1))
    prompt = images(1)[0][1]
    expected = ddim_sample(rowwise, SCHEDULE, state.trajectory[-1][None], prompt[None], [EMPTY[None]] * 50, 1)
    assert torch.equal(state.latents, expected[0])
    assert all(torch.equal(row, prompt) for row in state.null_embeddings)


@pytest.mark.parametrize("null_init", ["empty", "prompt"])
def test_ddim_is_guided_sampling_with_the_empty_prompt(null_init: Literal["empty", "prompt"]):
    empty, (latents, prompt) = torch.full((4, 4), 0.1), images(2)[1]
    settings = InversionSettings(method="ddim", null_init=null_init)
    (state,), _ = invert(rowwise, SCHEDULE, settings, [(latents, prompt)], empty=empty)
    expected = ddim_sample(rowwise, SCHEDULE, state.trajectory[-1][None], prompt[None], [empty[None]] * 50, 7.5)
    assert torch.equal(state.latents, expected[0])


@pytest.mark.parametrize(
    ("method", "forwards"), [("ddim", 150), ("direct", 150), ("negative-prompt", 100), ("ddpm", 0)]
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_work_is_counted_no_gradient_is_computed_and_every_call_is_full(
    method: Method, forwards: int, batch_size: int
):
    settings, inputs = InversionSettings(method=method), images(3 * batch_size)
    pool = InversionPool[int](rowwise, SCHEDULE, settings, EMPTY, batch_size)
    states = []
    with HostTraffic() as traffic:
        for key, image in enumerate(inputs):
            while len(pool) == pool.capacity:
                states += [state for _, state in pool.advance()]
                assert pool.work.full_calls == pool.work.calls
            pool.admit(key, *image, key)
        while len(pool):
            states += [state for _, state in pool.advance()]
    assert traffic.reads <= pool.work.calls and traffic.writes == 0, "the device should not be waited for more often"
    assert {(s.forwards, s.backwards, sum(s.inner_steps), len(s.null_embeddings)) for s in states} == {
        (forwards, 0, 0, 50)
    }
    assert (pool.work.forwards, pool.work.backwards) == (forwards * len(inputs), 0)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_pivot_comes_back_from_the_file_bit_for_bit(storage: Storage):
    settings = InversionSettings(method="direct")
    (state,), _ = invert(rowwise, SCHEDULE, settings, images(1), storage=storage)
    nulls, pivot = state.null_embeddings, state.pivot
    payload = pack_tensors(storage, state.trajectory[-1], state.start_embedding, nulls, pivot)
    noise, embeddings, again = unpack_tensors(payload, 50)
    assert pivot is not None and again is not None and again.dtype == torch.float32
    assert torch.equal(again, pivot)
    assert torch.equal(noise, state.trajectory[-1])
    assert torch.equal(embeddings, nulls)


def findings_of(pivot: Tensor | None, method: Method) -> Iterator[str]:
    settings = replace(SETTINGS, inversion=InversionSettings(method=method))
    noise, nulls = torch.zeros(4, 2, 2), torch.zeros(2, 3, 5)
    metadata: Metadata = {"settings": settings.to_json()}
    return check_inversion(StoredInversion("s", "k", "a", noise, nulls, metadata, pivot))


def test_verify_knows_what_a_pivot_must_be():
    assert all(list(findings_of(torch.zeros(2, 4, 2, 2), method)) == [] for method in KEEP_PIVOT)
    assert list(findings_of(None, "ddim")) == []
    expected = "(2, 4, 2, 2)"
    for method in KEEP_PIVOT:
        assert list(findings_of(None, method)) == [f"the pivot has the shape None, not {expected}"]
    assert list(findings_of(torch.zeros(1, 4, 2, 2), "direct")) == [
        f"the pivot has the shape (1, 4, 2, 2), not {expected}"
    ]
    assert list(findings_of(torch.zeros(2, 4, 2, 2), "ddim")) == [f"the pivot has the shape {expected}, not None"]
    assert list(findings_of(torch.full((2, 4, 2, 2), torch.nan), "direct")) == [
        "pivot hold numbers that are not finite"
    ]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", PLAIN)
def test_the_job_takes_a_method_and_its_files_replay_to_its_own_images(
    tiny_model: Path,
    tmp_path: Path,
    method: Method,
    storage: Storage,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    drawn: list[tuple[Any, Any, list[str]]] = []
    draw_rows = preview.draw_rows

    def noted(rows: Any) -> Any:
        drawn.extend(rows)
        return draw_rows(rows)

    monkeypatch.setattr(preview, "draw_rows", noted)
    shard, out = write_shard(tmp_path / "s.tar", captioned(3)), tmp_path / "out"
    assert main([*arguments(tiny_model, shard, out), f"--model.method={method}", f"--output.storage={storage}"]) == 0
    titles = ["input", "VAE", "DDIM", "reconstruction"]
    assert all([label.split()[0] for label in labels] == titles for _, _, labels in drawn)
    assert len(drawn) == 3
    networks = StableDiffusion.load(ModelSource(str(tiny_model)))
    for stored in read_inversions(out):
        assert stored.settings.inversion.method == method
        assert (stored.pivot is not None) == (method in KEEP_PIVOT)
        original = decode_image(png(int(stored.key)), 16, 16)[None] / 255
        reached = psnr(reconstruct(networks, [stored], guided=True), original).item()
        assert reached == pytest.approx(stored.metadata["psnr"], abs=1e-3)
        if method in KEEP_PIVOT:
            assert reached == pytest.approx(stored.metadata["psnr_vae"], abs=1e-3)
    capsys.readouterr()
    assert main(["verify", str(out), "--recompute", "3"]) == 0
    assert capsys.readouterr().out.endswith("no findings: the run is intact\n")
    assert main(["status", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 3


def test_two_methods_on_one_folder_are_refused(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shard, out = write_shard(tmp_path / "s.tar", captioned(1)), tmp_path / "out"
    assert main(arguments(tiny_model, shard, out)) == 0
    assert open_inversions(out).settings.inversion.method == "null-text"
    assert main([*arguments(tiny_model, shard, out), "--model.method=direct"]) == 2
    assert 'model.method: "null-text" there, "direct" now' in capsys.readouterr().err


def test_the_embedded_model_is_inverted_directly(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    flags = [
        "--data.shards=nti_batch/demo/samples/photographs-000000.tar",
        f"--output.dir={out}",
        "--model.num_steps=5",
    ]
    assert main(["invert", "--model.method=direct", "--output.storage=compact", *flags]) == 0
    assert main(["verify", str(out), "--recompute", "2"]) == 0
    assert capsys.readouterr().out.endswith("no findings: the run is intact\n")
    for stored in read_inversions(out):
        assert stored.metadata["psnr"] == pytest.approx(stored.metadata["psnr_vae"], abs=1e-2)
        assert (stored.metadata["forwards"], stored.metadata["backwards"]) == (15, 0)


def test_a_method_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"method is magic, allowed: 'null-text' or 'ddim' or 'negative-prompt' or 'd"):
        InversionSettings(method="magic")  # type: ignore[arg-type]
