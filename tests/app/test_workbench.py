"""What the page computes is what the job computes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.edits import edit, edited_images, rows

from nti_batch import read_inversions
from nti_batch.app.edit_list import EditList
from nti_batch.app.form import EditForm
from nti_batch.app.visit import MAX_KEPT, Visit
from nti_batch.app.workbench import Edit, Source, Workbench
from nti_batch.cli import main
from nti_batch.editing.masks import decode_runs
from nti_batch.jobs.flags import SAMPLES
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.bucket import Bucket

SCENES = SAMPLES / "scenes-000000.tar"


def first_source(workbench: Workbench) -> Source:
    return workbench.source(*workbench.dataset.ids[0])


def recoloured(prompt: str) -> str:
    """The prompt with another colour of its first object."""
    words = prompt.split()
    place = next(i for i, word in enumerate(words) if word in {"large", "small"}) + 1
    return " ".join([*words[:place], "red" if words[place] != "red" else "blue", *words[place + 1 :]])


def form(source: Source) -> EditForm:
    prompt = recoloured(source.stored.prompt)
    words = prompt.split()
    place = next(i for i, word in enumerate(words) if word in {"large", "small"}) + 2
    return EditForm(prompt, source_blend_words=words[place], edit_blend_words=words[place], equalizer="small=1.5")


def blended(source: Source) -> EditForm:
    """An edit with local blend in every step."""
    return replace(form(source), equalizer="", further="blend_start = 0")


@pytest.fixture(scope="module")
def made(app_run: Path, demo_networks: object) -> tuple[Workbench, Source, Edit]:
    workbench = Workbench(app_run, demo_networks)  # type: ignore[arg-type]
    source = first_source(workbench)
    return workbench, source, workbench.edit(source, blended(source), lambda share: None)


def test_an_image_stands_beside_its_vae_bound_and_its_reconstruction(workbench: Workbench, app_run: Path):
    source = first_source(workbench)
    recorded = next(s for s in read_inversions(app_run) if s.key == source.stored.key).metadata
    assert source.input is not None and source.vae is not None and source.unread == ""
    assert source.psnr == pytest.approx(recorded["psnr"], abs=1e-3)
    assert source.psnr_vae == pytest.approx(recorded["psnr_vae"], abs=1e-3)
    assert source.input.shape == source.vae.shape == source.reconstruction.shape


def test_a_run_in_an_object_store_is_shown_as_its_folder_is(
    workbench: Workbench, app_run: Path, demo_networks: StableDiffusion, bucket: str
):
    for path in (app_run / "run.json", *(app_run / "inversions").glob("*")):
        Bucket(f"{bucket}/run").put_file(path.relative_to(app_run).as_posix(), path)
    stored = Workbench(f"{bucket}/run", demo_networks)
    assert stored.gallery.search("") == workbench.gallery.search("")
    one, other = first_source(stored), first_source(workbench)
    assert torch.equal(one.reconstruction, other.reconstruction) and one.psnr == other.psnr


def test_an_image_whose_shard_is_gone_is_reconstructed(workbench: Workbench, monkeypatch: pytest.MonkeyPatch):
    expected = first_source(workbench).reconstruction
    monkeypatch.setattr(type(workbench.gallery), "pixels", lambda *_: (None, "the shard is gone"))
    source = first_source(workbench)
    assert source.input is None and source.vae is None and source.unread == "the shard is gone"
    assert torch.equal(source.reconstruction, expected)
    edit = workbench.edit(source, EditForm("a red circle"), lambda share: None)
    assert edit.scores.psnr is not None


def test_the_line_makes_the_image_of_the_page_and_its_scores(
    made: tuple[Workbench, Source, Edit], app_run: Path, tmp_path: Path
):
    workbench, _, shown = made
    check_line(workbench, shown, app_run, tmp_path)


def test_padding_is_no_part_of_the_mask_and_of_the_scores(demo_networks: StableDiffusion, tmp_path: Path):
    out = tmp_path / "padded"
    few = ["--model.num_steps=2", "--model.num_inner_steps=1", "--data.limit=1", "--trainer.accelerator=cpu"]
    wide = ["--data.fit=pad", "--data.height=64", "--data.width=128"]
    assert main(["invert", f"--data.shards={SCENES}", f"--output.dir={out}", *few, *wide]) == 0
    workbench = Workbench(out, demo_networks)
    source = first_source(workbench)
    shown = workbench.edit(source, blended(source), lambda share: None)
    assert shown.mask is not None and (shown.mask.height, shown.mask.width) == (64, 64)
    check_line(workbench, shown, out, tmp_path)


def check_line(workbench: Workbench, shown: Edit, app_run: Path, tmp_path: Path) -> None:
    """Compare an edit with that of the job by its line in a list."""
    edits = EditList(tmp_path / "edits.jsonl", list(workbench.dataset.run.shards))
    edits.add(replace(shown.request, name="mine", mask=shown.mask))
    assert main(edit(app_run, tmp_path / "out", f"--data.edits={edits.path}")) == 0
    id = shown.request.shard, shown.request.key, "mine"
    assert torch.equal(edited_images(tmp_path / "out")[id], shown.pixels)
    row = rows(tmp_path / "out")[id]
    assert row.psnr_unedited == pytest.approx(shown.scores.psnr, abs=1e-3)
    assert row.ssim_unedited == pytest.approx(shown.scores.ssim, abs=1e-3)


def test_outside_the_mask_the_edit_is_its_source(made: tuple[Workbench, Source, Edit]):
    _, _, shown = made
    assert shown.mask is not None and shown.inside is not None
    assert 0 < decode_runs(shown.mask).float().mean() < 1
    difference = (shown.pixels.int() - shown.source.int()).abs().sum(0).float()
    assert difference[shown.inside].mean() > 3 * difference[~shown.inside].mean()


def test_an_edit_without_blend_words_has_no_mask_and_progress_ends_at_one(workbench: Workbench):
    source, shares = first_source(workbench), list[float]()
    edit = workbench.edit(source, EditForm(recoloured(source.stored.prompt)), shares.append)
    assert edit.mask is None and edit.inside is None and edit.scores.psnr_edited is None
    # 4 steps with two UNet calls each
    assert shares == [n / 8 for n in range(8)]


def test_a_map_is_of_its_word_alone(made: tuple[Workbench, Source, Edit]):
    workbench, source, shown = made
    words = workbench.words(source.stored.prompt)
    maps = {word: workbench.map_of(shown.attention, 0, word) for word in words}
    assert all(m.min() == 0 and m.max() == 1 for m in maps.values())
    assert not torch.equal(maps[words[0]], maps[words[-1]])
    own = shown.attention.maps[0][..., workbench.networks.tokenize(source.stored.prompt).find(words[-1])].sum(-1)
    assert int(own.argmax()) == int(maps[words[-1]].argmax())
    alone = workbench.attention(source.stored, lambda share: None)
    assert torch.allclose(alone.maps[0], shown.attention.maps[0], atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (EditForm("  "), "the prompt is empty"),
        (EditForm("a" * 10_001), "the prompt has 10,001 characters, allowed: 10,000"),
        (EditForm("a red circle", equalizer="zebra=2"), "'zebra' does not occur in the prompt"),
        (EditForm("a red circle", source_blend_words="zebra"), "'zebra' does not occur in the prompt"),
        (EditForm("a red circle", kind="replace"), "to replace words, an edit needs as many as its source"),
    ],
)
def test_mistakes_are_named_before_anything_is_computed(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, wrong: EditForm, message: str
):
    source = first_source(workbench)
    monkeypatch.setattr(Workbench, "_sample", lambda *_: pytest.fail("this is too late"))
    with pytest.raises(ValueError) as error:
        workbench.edit(source, wrong, lambda share: None)
    assert message in str(error.value)


def test_a_word_that_is_not_in_its_prompt_has_no_map(made: tuple[Workbench, Source, Edit]):
    workbench, _, shown = made
    with pytest.raises(ValueError, match="'zebra' does not occur in"):
        workbench.map_of(shown.attention, 0, "zebra")


def test_a_prompt_that_is_cut_is_made_and_marked(workbench: Workbench):
    edit = workbench.edit(first_source(workbench), EditForm("a red circle " * 60), lambda share: None)
    assert edit.is_truncated


def test_the_last_edits_stay_and_any_of_them_can_be_added(made: tuple[Workbench, Source, Edit]):
    _, source, shown = made
    visit = Visit()
    for wrong in (visit.current_source, lambda: visit.current_edit("", False)):
        with pytest.raises(ValueError, match=r"no image is chosen|no edit is shown"):
            wrong()
    visit.start(source)
    for number in range(MAX_KEPT + 2):
        visit.keep(replace(shown, request=replace(shown.request, edit_prompt=f"prompt {number}")))
    assert visit.titles() == [f"{number + 1}: prompt {number}" for number in range(2, MAX_KEPT + 2)]
    assert [row[0] for row in visit.scores()] == [str(number) for number in range(3, MAX_KEPT + 3)]
    visit.show(visit.edits[0])
    assert visit.current_edit(" mine ", True).request == replace(
        shown.request, edit_prompt="prompt 2", name="mine", mask=shown.mask
    )
    visit.start(source)
    with pytest.raises(ValueError, match="no edit is shown"):
        visit.current_edit("", False)
