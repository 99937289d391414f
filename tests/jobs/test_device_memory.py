"""The memory of a device: VAE and UNet share it, and the writer's thread leaves it alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.jobs import arguments, rows
from helpers.tiny import captioned, write_shard
from torch import Tensor

from nti_batch.cli import main
from nti_batch.diffusion import null_text
from nti_batch.diffusion.pool import InversionPool
from nti_batch.jobs.invert_module import InversionModule
from nti_batch.jobs.job_module import JobModule
from nti_batch.jobs.writer import RecordWriter
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import Inversion, Outcome


class TwoCalls(InversionPool[Any]):
    """A pool that is one call ahead, as on a GPU."""

    made: "TwoCalls"

    def __init__(self, *arguments: Any) -> None:
        """Note the pool that a job makes."""
        super().__init__(*arguments)
        self.most_calls, TwoCalls.made = 2, self


@pytest.mark.parametrize("part", ["encode_images", "decode_latents"])
def test_where_the_vae_does_not_fit_beside_a_call_it_runs_without(
    part: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    own, refused = getattr(StableDiffusion, part), []

    def limited(networks: StableDiffusion, given: Tensor) -> Any:
        if TwoCalls.made._calls:
            refused.append(len(given))
            raise torch.OutOfMemoryError("no memory")
        return own(networks, given)

    monkeypatch.setattr(InversionModule, "pool_type", TwoCalls)
    monkeypatch.setattr(StableDiffusion, part, limited)
    shard = write_shard(tmp_path / "a.tar", captioned(9))
    assert main(arguments(tiny_model, shard, tmp_path / "out")) == 0
    assert len(rows(tmp_path / "out")) == 9
    assert refused[-1] == 1, "one image was tried before the calls were dropped"
    assert "two calls do not fit the device's memory: continuing with one at a time" in capsys.readouterr().err


def test_the_preview_is_drawn_where_the_vae_takes_one_image(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own, refused = StableDiffusion.decode_latents, []

    def limited(networks: StableDiffusion, latents: Tensor) -> Tensor:
        if len(latents) > 1:
            refused.append(len(latents))
            raise torch.OutOfMemoryError("no memory")
        return own(networks, latents)

    monkeypatch.setattr(StableDiffusion, "decode_latents", limited)
    shard = write_shard(tmp_path / "a.tar", captioned(4))
    assert main(arguments(tiny_model, shard, tmp_path / "out", "--model.batch_size=1")) == 0
    assert 4 in refused, "the preview asked for all images at once"
    assert (tmp_path / "out" / "preview.png").exists()


def test_the_networks_stay_on_the_device_for_the_preview(tiny_model: Path):
    """The Trainer moves its module to the host at the end."""
    module = JobModule()
    module.networks = StableDiffusion.load(ModelSource(str(tiny_model))).to("meta")
    assert module.cpu().networks.device.type == "meta"


def test_an_image_that_the_vae_never_fits_ends_the_job(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(networks: StableDiffusion, given: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(StableDiffusion, "decode_latents", refuse)
    shard = write_shard(tmp_path / "a.tar", captioned(1))
    with pytest.raises(torch.OutOfMemoryError):
        main(arguments(tiny_model, shard, tmp_path / "out"))


@pytest.mark.parametrize("flag", ["--model.method=null-text", "--model.method=direct", "--model.method=ddpm"])
def test_the_writer_gets_copies_on_the_host(
    flag: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A call of the device in another thread would end the capture of a CUDA graph."""
    copies: list[Tensor] = []

    def copied(tensor: Tensor) -> Tensor:
        copies.append(tensor.clone())
        return copies[-1]

    put, taken = RecordWriter.put, []

    def noted(writer: RecordWriter, outcome: Outcome) -> None:
        if isinstance(outcome, Inversion):
            taken.append(outcome)
        put(writer, outcome)

    monkeypatch.setattr(null_text, "download", copied)
    monkeypatch.setattr(RecordWriter, "put", noted)
    shard = write_shard(tmp_path / "a.tar", captioned(2))
    assert main(arguments(tiny_model, shard, tmp_path / "out", flag)) == 0
    own = {tensor.untyped_storage().data_ptr() for tensor in copies}
    assert len(taken) == 2
    for inversion in taken:
        values = (getattr(inversion, name) for name in inversion.__slots__)
        tensors = [value for value in values if isinstance(value, Tensor)]
        assert len(tensors) >= 3 and all(tensor.untyped_storage().data_ptr() in own for tensor in tensors)
