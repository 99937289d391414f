"""Uploaded images become a run like any other."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.edits import edit, edited_images
from helpers.tiny import png
from PIL import Image

from nti_batch import InversionDataset, read_inversions
from nti_batch.app.edit_list import EditList
from nti_batch.app.form import EditForm
from nti_batch.app.uploads import Upload, Uploads
from nti_batch.app.workbench import Workbench
from nti_batch.cli import main
from nti_batch.commands.app import upload_settings
from nti_batch.data.images import decode_image
from nti_batch.data.shards import work_units
from nti_batch.jobs.flags import InvertModelFlags
from nti_batch.lock import UnitInUseError
from nti_batch.models.load import load_model
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion

CAPTION = "a small red circle"


@pytest.fixture(scope="module")
def networks(tiny_model: Path) -> StableDiffusion:
    return load_model(ModelSource(str(tiny_model)), "float32", None).cpu()


@pytest.fixture
def flags(tiny_model: Path) -> InvertModelFlags:
    return InvertModelFlags(name=str(tiny_model), num_steps=3, num_inner_steps=2)


@pytest.fixture
def uploads(flags: InvertModelFlags, tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "run", upload_settings(flags))


def invert(uploads: Uploads, networks: StableDiffusion, upload: Upload) -> tuple[str, str]:
    known = InversionDataset(uploads.run.out).ids
    return uploads.invert(networks, upload, known, lambda share: None)


def test_an_upload_is_a_run_that_every_command_takes(
    uploads: Uploads,
    networks: StableDiffusion,
    flags: InvertModelFlags,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    shares: list[float] = []
    upload = Upload("my cup (1).jpg", png(1, 40), CAPTION)
    id = uploads.invert(networks, upload, [], shares.append)
    assert id == ("images", "my-cup-1")
    assert shares == sorted(shares) and 0 < shares[0] < 0.3 and 0.7 < shares[-1] < 1
    out = uploads.run.out
    (stored,) = read_inversions(out)
    assert (stored.shard, stored.key, stored.prompt) == (*id, CAPTION)
    pixels = InversionDataset(out, pixels=True)[id].pixels
    assert pixels is not None and torch.equal(pixels, decode_image(upload.content, 16, 16))
    assert main(["verify", str(out)]) == 0
    # the job with the same settings finds nothing to do
    job = ["invert", f"--model.name={flags.name}", "--model.num_steps=3", "--model.num_inner_steps=2"]
    job += [f"--data.images={out / 'images'}", f"--output.dir={out}", "--trainer.accelerator=cpu"]
    capsys.readouterr()
    assert main(job) == 0
    assert "1 done, 0 failed, 0 missing of 1 images" in capsys.readouterr().out
    assert len(list(read_inversions(out))) == 1
    workbench = Workbench(out, networks)
    edited = workbench.edit(workbench.source(*id), EditForm("a small blue circle"), lambda share: None)
    edits = EditList(tmp_path / "edits.jsonl", ["images"])
    edits.add(edited.request)
    assert main(edit(out, tmp_path / "edits", f"--data.edits={edits.path}")) == 0
    assert torch.equal(edited_images(tmp_path / "edits")[(*id, "0")], edited.pixels)


def test_a_job_inverts_an_upload_alike(uploads: Uploads, networks: StableDiffusion, flags: InvertModelFlags):
    id = invert(uploads, networks, Upload("cup.png", png(1), CAPTION))
    (from_page,) = read_inversions(uploads.run.out)
    out = uploads.run.out.with_name("again")
    job = ["invert", f"--model.name={flags.name}", "--model.num_steps=3", "--model.num_inner_steps=2"]
    job += [f"--data.images={uploads.folder}", f"--output.dir={out}", "--trainer.accelerator=cpu"]
    assert main([*job, "--model.batch_size=1"]) == 0
    (from_job,) = read_inversions(out, [id])
    assert torch.equal(from_page.null_embeddings, from_job.null_embeddings)
    assert from_page.metadata["input_sha256"] == from_job.metadata["input_sha256"]


def test_two_uploads_of_one_name_have_two_keys(uploads: Uploads, networks: StableDiffusion):
    keys = [invert(uploads, networks, Upload("../../cup.gif", png(n), CAPTION))[1] for n in range(2)]
    assert keys == ["cup", "cup-2"]
    assert invert(uploads, networks, Upload("...", png(3), CAPTION))[1] == "image"
    assert sorted(path.name for path in uploads.folder.iterdir()) == [
        *("cup-2.gif", "cup-2.txt", "cup.gif", "cup.txt", "image.png", "image.txt")
    ]


def bomb() -> bytes:
    """A PNG of a few kilobytes that would unpack to gigabytes."""
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "caption", "message"),
    [
        ("page.jpg", b"<html>", CAPTION, "'page.jpg': image is not a whole JPEG, "),
        ("cut.png", png(1)[:200], CAPTION, "'cut.png': image of 200 bytes is damaged"),
        ("empty.png", b"", CAPTION, "'empty.png': image is empty (0 bytes)"),
        ("cup.png", png(1), "  ", "the prompt is empty"),
        ("cup.png", png(1), "a" * 10_001, "the prompt has 10,001 characters"),
    ],
)
def test_what_cannot_be_inverted_is_named_and_leaves_nothing(
    uploads: Uploads, networks: StableDiffusion, name: str, content: bytes, caption: str, message: str
):
    with pytest.raises(ValueError) as error:
        invert(uploads, networks, Upload(name, content, caption))
    assert message in str(error.value)
    assert list(uploads.folder.iterdir()) == [] and list(read_inversions(uploads.run.out)) == []


def test_a_bomb_is_refused_by_its_header(uploads: Uploads, networks: StableDiffusion):
    with pytest.raises(ValueError, match=r"'bomb\.png': image has too many pixels"):
        invert(uploads, networks, Upload("bomb.png", bomb(), CAPTION))
    assert list(uploads.folder.iterdir()) == []


def test_an_upload_waits_for_no_job_on_the_same_run(
    uploads: Uploads, networks: StableDiffusion, flags: InvertModelFlags
):
    other = Uploads(uploads.run.out, upload_settings(flags))
    units = work_units(other.run.shards, other.run.settings.units_per_shard)
    unit = next(unit for unit in units if unit.holds("cup"))
    other.run.claim(unit)
    with pytest.raises(UnitInUseError):
        invert(uploads, networks, Upload("cup.png", png(1), CAPTION))
    assert list(uploads.folder.iterdir()) == []
    other.run.release(unit)
    assert invert(uploads, networks, Upload("cup.png", png(1), CAPTION)) == ("images", "cup")


def test_the_run_is_resumed_with_the_same_settings_alone(uploads: Uploads, flags: InvertModelFlags):
    assert Uploads(uploads.run.out, upload_settings(flags)).run.shards == uploads.run.shards
    with pytest.raises(ValueError, match=r"model\.num_steps: 3 there, 4 now"):
        Uploads(uploads.run.out, upload_settings(replace(flags, num_steps=4)))
