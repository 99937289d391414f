"""Proximal guidance: the minima that define it, its equations in a loop, and edits that stay their source."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.edited_rows import Source, random_source, sample_rows
from helpers.edited_samples import ROUNDING, SOURCE, SWAP, sample
from helpers.edits import difference, edit, edited_images, edits_flag, rows
from helpers.fakes import rowwise, stable_diffusion_schedule
from helpers.jobs import arguments
from helpers.tiny import captioned, write_shard
from torch import Tensor

from nti_batch import EditSettings
from nti_batch.cli import main
from nti_batch.diffusion.ddim import ddim_step
from nti_batch.diffusion.edit_settings import Proximal
from nti_batch.diffusion.proximal import proximal_difference
from nti_batch.models.stable_diffusion import StableDiffusion

SCHEDULE = stable_diffusion_schedule(20)


@pytest.mark.parametrize("kind", ["l0", "l1"])
def test_the_threshold_minimises_what_defines_it(kind: Proximal):
    """prox(d) minimises (x - d)^2 / 2 + R(x), with R lambda |x| for l1, and lambda^2 / 2 where x is not 0 for l0."""
    differences = torch.linspace(-2, 2, 81).view(1, 1, 81)
    found, _ = proximal_difference(differences, differences, EditSettings(proximal=kind, quantile=0.48))
    threshold, grid = differences.abs().repeat(2, 1, 1).quantile(0.48), torch.linspace(-2, 2, 4001)
    penalty = threshold * grid.abs() if kind == "l1" else threshold**2 / 2 * (grid.abs() > 1e-6)
    expected = grid[((grid - differences.view(-1, 1)) ** 2 / 2 + penalty).argmin(1)]
    torch.testing.assert_close(found.flatten(), expected, atol=1.1e-3, rtol=0)


def test_the_threshold_is_the_quantile_over_the_source_and_the_edit():
    edited, source = torch.arange(1.0, 51).view(2, 5, 5), torch.zeros(2, 5, 5)
    found, _ = proximal_difference(edited, source, EditSettings(proximal="l0", quantile=0.7))
    assert (found != 0).sum() == 30, "70 of 100 values are the source's 50 and 20 of the edit's"
    found, _ = proximal_difference(edited, source, EditSettings(proximal="l1", quantile=0.7))
    assert found.max() == pytest.approx(50 - torch.cat([source, edited]).quantile(0.7).item())


def test_the_surroundings_of_a_change_are_spared():
    edited = torch.zeros(1, 5, 7)
    edited[0, 2, 3] = 4.0
    for radius, spared in ((0, 1), (1, 9), (2, 25), (9, 35)):
        settings = EditSettings(proximal="l0", quantile=0.5, dilate_mask=radius)
        _, unedited = proximal_difference(edited, torch.zeros_like(edited), settings)
        assert (unedited == 0).sum() == spared
        assert set(unedited.unique().tolist()) <= {0.0, 1.0}


def edited_by_hand(source: Source, prompt: Tensor, null: Tensor, settings: EditSettings) -> Tensor:
    """The equations of the paper for one image and one edit, at w = 7.5, in loops over steps and channels."""
    z, edited = source.noise, source.noise
    for t in range(20, 0, -1):
        timestep, here = SCHEDULE.network_timesteps[t : t + 1], torch.tensor([t])

        def predict(latents: Tensor, embedding: Tensor, timestep: Tensor = timestep) -> Tensor:
            return rowwise(latents[None], timestep, embedding[None])[0]

        d_source = predict(z, source.prompt) - predict(z, null)
        d = predict(edited, prompt) - predict(edited, null)
        sizes = sorted([*d_source.abs().flatten().tolist(), *d.abs().flatten().tolist()])
        place = settings.quantile * (len(sizes) - 1)
        low, high = sizes[int(place)], sizes[min(int(place) + 1, len(sizes) - 1)]
        threshold = low + (place - int(place)) * (high - low)
        kept = d.sign() * F.relu(d.abs() - threshold) if settings.proximal == "l1" else d * (d.abs() > threshold)
        mask = kept.abs() > threshold
        if settings.dilate_mask:  # of 2 x 2 pixels each is a neighbour of all
            mask = mask | mask.flatten(1).any(1)[:, None, None]
        noise = predict(edited, null) + 7.5 * kept
        edited = ddim_step(SCHEDULE, edited[None], noise[None], here, here - 1)[0]
        z = ddim_step(SCHEDULE, z[None], (predict(z, null) + 7.5 * d_source)[None], here, here - 1)[0]
        if 20 - t >= int(settings.recon_start * 20):
            edited = torch.where(mask, edited, edited - settings.recon_lr * (edited - z))
    return edited


CHANGES = [
    EditSettings(proximal="l1"),
    EditSettings(proximal="l0", quantile=0.4),
    EditSettings(proximal="l1", quantile=0.8, recon_lr=0.5),
    EditSettings(proximal="l0", recon_lr=1.0, recon_start=0.2, dilate_mask=0),
    EditSettings(proximal="l0", quantile=0.9, recon_lr=0.3, recon_start=0.0, dilate_mask=2),
]


@pytest.mark.parametrize("is_negative_prompt", [True, False])
def test_the_edits_of_a_batch_are_those_of_the_equations_one_by_one(is_negative_prompt: bool):
    sources = [random_source(1, *CHANGES, EditSettings()), random_source(2, CHANGES[2])]
    null = sources[0].prompt if is_negative_prompt else torch.zeros(4, 4)
    found = iter(sample_rows(rowwise, SCHEDULE, sources, null, 7.5))
    for source in sources:
        plain = sample_rows(rowwise, SCHEDULE, [Source(source.noise, source.prompt)], null, 7.5)
        torch.testing.assert_close(next(found), plain[0], atol=1e-4, rtol=1e-4)
        for prompt, settings in source.edits:
            row = next(found)
            if settings.proximal:
                torch.testing.assert_close(row, edited_by_hand(source, prompt, null, settings), atol=1e-3, rtol=1e-4)
            else:
                unthresholded = sample_rows(rowwise, SCHEDULE, [Source(source.noise, prompt)], null, 7.5)
                torch.testing.assert_close(row, unthresholded[0], atol=1e-4, rtol=1e-4)


def test_an_edit_is_thresholded_at_guidance_1_as_well():
    source = random_source(1, EditSettings(proximal="l0", quantile=1.0, guidance_scale=1.0))
    null = torch.full((4, 4), 0.2)
    found = sample_rows(rowwise, SCHEDULE, [source], null, 1.0)
    unguided = sample_rows(rowwise, SCHEDULE, [Source(source.noise, null)], null, 1.0)
    torch.testing.assert_close(found[1], unguided[0], atol=1e-4, rtol=1e-4)


def test_inversion_guidance_holds_an_unchanged_edit_at_its_source():
    source = random_source(3, EditSettings(proximal="l1", quantile=1.0, recon_lr=1.0, recon_start=0.0))
    found = sample_rows(rowwise, SCHEDULE, [source], torch.zeros(4, 4), 7.5)
    assert torch.equal(found[1], found[0])


@pytest.mark.parametrize("settings", [*CHANGES, EditSettings(proximal="l1", recon_lr=1.0, skip_steps=0.3)])
def test_the_sources_own_prompt_is_no_change_with_negative_prompt_inversion(settings: EditSettings):
    source = random_source(4, settings)
    source = Source(source.noise, source.prompt, [(source.prompt, settings)])
    found = sample_rows(rowwise, SCHEDULE, [source], source.prompt, 7.5)
    torch.testing.assert_close(found[1], found[0], atol=ROUNDING, rtol=0)


def test_a_batch_gives_what_each_edit_gives_alone(networks: StableDiffusion):
    settings = EditSettings(proximal="l1", recon_lr=1.0, blend_words=("circle", "square"), guidance_scale=3.0)
    edits = [("a red square on the left", settings), ("a blue circle on the left", SWAP)]
    together = sample(networks, [(SOURCE, edits), ("a small star", [("a small heart", CHANGES[3])])])
    for row, alone in zip(together[1:], edits, strict=False):
        torch.testing.assert_close(row, sample(networks, [(SOURCE, [alone])])[1], atol=1e-3, rtol=1e-3)
    plain = EditSettings(blend_words=("circle", "square"), guidance_scale=3.0)
    unthresholded = sample(networks, [(SOURCE, [("a red square on the left", plain)])])[1]
    assert (together[1] - unthresholded).abs().max() > 1e-3


def test_a_list_and_the_flags_of_the_job_choose_it(tiny_model: Path, tmp_path: Path):
    shard, out = write_shard(tmp_path / "a.tar", captioned(1)), tmp_path / "out"
    assert main([*arguments(tiny_model, shard, out), "--model.method=negative-prompt", "--model.num_steps=10"]) == 0
    prompt = "a small blue circle"
    listed = edits_flag(
        tmp_path / "edits.jsonl",
        {"key": "000", "name": "prox", "edit_prompt": prompt, "proximal": "l0", "quantile": 0.9, "recon_lr": 1},
        {"key": "000", "name": "default", "edit_prompt": prompt},
        {"key": "000", "name": "still", "edit_prompt": prompt, "quantile": 1, "recon_lr": 1, "recon_start": 0},
        {"key": "000", "name": "source"},
    )
    assert main(edit(out, tmp_path / "edited", listed, "--edit.proximal=l1", "--edit.dilate_mask=2")) == 0
    images = {name: pixels for (_, _, name), pixels in edited_images(tmp_path / "edited").items()}
    assert difference(images["still"], images["source"]) == 0
    assert len({pixels.sum().item() for pixels in images.values()}) == 3
    assert all(row.status == "done" for row in rows(tmp_path / "edited").values())
    assert main(["verify", str(tmp_path / "edited")]) == 0
    assert main(edit(out, tmp_path / "edited", listed, "--edit.proximal=l0", "--edit.dilate_mask=2")) == 2
