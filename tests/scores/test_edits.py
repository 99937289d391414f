"""Scores of edits: how the two protocols are related, and the table."""

import math
from pathlib import Path

import pytest
import torch
from helpers.pie_folder import EDITS, drawn, scene, write_pie_folder
from helpers.tiny_scores import torchmetrics_lpips, write_clip, write_dino, write_lpips
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.editing.masks import mask_pixels
from nti_batch.editing.pie_bench import CATEGORIES, category, read_edits
from nti_batch.scores.edits import EditScores, Protocol, score_edits, scores_table
from nti_batch.scores.learned import LearnedScores
from nti_batch.scores.metrics import mse, psnr, ssim

CPU = torch.device("cpu")
NO_WEIGHTS = LearnedScores.load(None, CPU)
PROMPTS = ["a small red circle", "green"]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Make edited images, sources, and masks with a quarter and a half of the pixels."""
    generator = torch.Generator().manual_seed(0)
    edited, sources = torch.rand(2, 2, 3, 32, 32, generator=generator)
    inside = torch.zeros(2, 32, 32, dtype=torch.bool)
    inside[0, :16, :16], inside[1, :16] = True, True
    return edited, sources, inside


def some(value: float | None) -> float:
    assert value is not None
    return value


def test_the_benchmarks_zeroed_pixels_count_as_equal():
    edited, sources, inside = batch()
    theirs = score_edits(edited, sources, inside, PROMPTS, NO_WEIGHTS, "pie-bench")
    ours = score_edits(edited, sources, inside, PROMPTS, NO_WEIGHTS, "unedited")
    for a, b, share in zip(theirs, ours, (0.75, 0.5), strict=True):
        assert some(a.mse) == pytest.approx(share * some(b.mse), rel=1e-4)
        assert some(a.psnr) == pytest.approx(some(b.psnr) - 10 * math.log10(share), rel=1e-4)


def test_the_benchmarks_similarity_leaves_out_a_border_of_5_pixels():
    edited, sources, inside = batch()
    a, b = (image * ~inside[:, None] for image in (edited, sources))
    _, maps = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none", return_full_image=True)
    expected = maps[:, :, 5:27, 5:27].mean((1, 2, 3))
    scored = score_edits(edited, sources, inside, PROMPTS, NO_WEIGHTS, "pie-bench")
    assert [score.ssim for score in scored] == pytest.approx(expected.tolist(), abs=1e-5)
    assert (expected - maps.mean((1, 2, 3))).abs().max() > 1e-2, "the border should matter"


def test_an_image_that_is_all_border_has_no_similarity_by_the_benchmarks_protocol():
    edited, sources = torch.rand(2, 1, 3, 16, 8)
    inside = torch.zeros(1, 16, 8, dtype=torch.bool)
    theirs, ours = (
        score_edits(edited, sources, inside, ["a"], NO_WEIGHTS, protocol)[0] for protocol in ("pie-bench", "unedited")
    )
    assert theirs.ssim is None and theirs.psnr is not None and ours.ssim is not None


def test_scores_of_the_unedited_part_are_those_of_its_pixels():
    edited, sources, inside = batch()
    scores = score_edits(edited, sources, inside, PROMPTS, NO_WEIGHTS, "unedited")
    for name, measure in {"mse": mse, "psnr": psnr, "ssim": ssim}.items():
        assert [getattr(s, name) for s in scores] == measure(edited, sources, ~inside).tolist()


@pytest.mark.parametrize("protocol", ["pie-bench", "unedited"])
def test_the_edited_part_changes_nothing_but_structure_and_clip(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    learned = all_weights(tmp_path, monkeypatch)
    _, sources, inside = batch()
    edited = torch.where(inside[:, None], 1 - sources, sources)
    for score in score_edits(edited, sources, inside, PROMPTS, learned, protocol):
        assert (score.mse, score.psnr) == (0, 100)
        assert some(score.mse_edited) > 0 and some(score.psnr_edited) < 20 and some(score.ssim_edited) < 0.9
        assert some(score.structure) > 0
        assert None not in (score.lpips, score.clip_whole, score.clip_edited)


def all_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> LearnedScores:
    write_clip(folder / "clip", seed=2)
    write_dino(folder / "dino")
    write_lpips(folder / "lpips", torchmetrics_lpips(monkeypatch))
    return LearnedScores.load(folder, CPU)


def test_each_network_gets_the_input_of_the_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    learned = all_weights(tmp_path, monkeypatch)
    assert learned.clip and learned.structure and learned.lpips
    edited, sources, inside = batch()
    outside = ~inside
    theirs, ours = (score_edits(edited, sources, inside, PROMPTS, learned, p) for p in ("pie-bench", "unedited"))
    assert [s.structure for s in theirs] == learned.structure(edited, sources, 255.0).tolist()
    assert [s.structure for s in ours] == learned.structure(edited, sources).tolist()
    zeroed = edited * outside[:, None], sources * outside[:, None]
    assert [s.lpips for s in theirs] == learned.lpips(*zeroed).tolist()
    assert [s.lpips for s in ours] == learned.lpips(edited, sources, outside).tolist()
    assert [s.clip_whole for s in theirs] == [s.clip_whole for s in ours] == learned.clip(edited, PROMPTS).tolist()
    kept = edited * inside[:, None], sources * inside[:, None]
    assert [s.lpips_edited for s in theirs] == learned.lpips(*kept).tolist()
    assert [s.lpips_edited for s in ours] == learned.lpips(edited, sources, inside).tolist()
    cut, rest = (learned.clip(edited * part[:, None], PROMPTS).tolist() for part in (inside, outside))
    assert cut != rest
    assert [s.clip_edited for s in theirs] == [s.clip_edited for s in ours] == cut


def test_scores_of_the_edited_part_are_those_of_its_pixels():
    edited, sources, inside = batch()
    ours = score_edits(edited, sources, inside, PROMPTS, NO_WEIGHTS, "unedited")
    theirs = score_edits(edited, sources, inside, PROMPTS, NO_WEIGHTS, "pie-bench")
    zeroed = edited * inside[:, None], sources * inside[:, None]
    for i in range(2):
        a, b, part = (images[i].double().numpy() for images in (edited, sources, inside))
        squares = ((a - b) ** 2).sum(0)[part == 1]
        assert some(ours[i].mse_edited) == pytest.approx(squares.sum() / (3 * len(squares)), rel=1e-5)
        assert some(theirs[i].mse_edited) == pytest.approx(squares.sum() / (3 * 32 * 32), rel=1e-5)
        for score in (ours[i], theirs[i]):
            assert some(score.psnr_edited) == pytest.approx(-10 * math.log10(some(score.mse_edited)), rel=1e-5)
        assert ours[i].lpips_edited is None
    for scored, images, pixels in ((ours, (edited, sources), inside), (theirs, zeroed, None)):
        _, maps = structural_similarity_index_measure(*images, data_range=1.0, reduction="none", return_full_image=True)
        for i in range(2):
            of_image = maps[i][:, inside[i]] if pixels is not None else maps[i][:, 5:27, 5:27]
            assert some(scored[i].ssim_edited) == pytest.approx(of_image.mean().item(), abs=1e-5)


@pytest.mark.parametrize("protocol", ["pie-bench", "unedited"])
def test_an_empty_mask_leaves_no_edited_part_to_score(protocol: Protocol):
    edited, sources, inside = batch()
    inside[1] = False
    first, second = score_edits(edited, sources, inside, PROMPTS, NO_WEIGHTS, protocol)
    assert (second.psnr_edited, second.mse_edited, second.ssim_edited) == (None, None, None)
    assert None not in (first.psnr_edited, first.mse_edited, first.ssim_edited, second.psnr)


@pytest.mark.parametrize("protocol", ["pie-bench", "unedited"])
def test_a_mask_of_everything_leaves_no_unedited_part_to_score(protocol: Protocol):
    edited, sources, inside = batch()
    inside[0] = True
    first, second = score_edits(edited, sources, inside, PROMPTS, NO_WEIGHTS, protocol)
    assert (first.psnr, first.mse, first.ssim) == (None, None, None)
    assert None not in (second.psnr, second.mse, second.ssim)


OF_EDITED = ("psnr_edited", "lpips_edited", "mse_edited", "ssim_edited")


def scores(psnr: float | None, clip: float | None = None) -> EditScores:
    return EditScores(
        **dict.fromkeys(("structure", "lpips", "clip_edited", *OF_EDITED)),
        psnr=psnr,
        mse=0.00123,
        ssim=0.5,
        clip_whole=clip,
    )


def test_the_table_has_the_benchmarks_columns_and_categories():
    full = EditScores(
        structure=0.0134,
        psnr=27.0,
        lpips=0.0607,
        mse=0.003586,
        ssim=0.8411,
        clip_whole=24.75,
        clip_edited=21.86,
        psnr_edited=18.0,
        lpips_edited=0.1,
        mse_edited=0.02,
        ssim_edited=0.7,
    )
    categories = {name: [full] if name == "change style" else [] for name in CATEGORIES}
    lines = scores_table(categories, "pie-bench").splitlines()
    assert lines[0] == (
        "| PIE-Bench | edits | structure distance x 10^3 | PSNR | LPIPS x 10^3 | MSE x 10^4 | SSIM x 10^2 "
        "| CLIP whole | CLIP edited | PSNR edited | LPIPS edited x 10^3 | MSE edited x 10^4 | SSIM edited x 10^2 |"
    )
    assert (
        lines[2]
        == "| all | 1 | 13.40 | 27.00 | 60.70 | 35.86 | 84.11 | 24.75 | 21.86 | 18.00 | 100.00 | 200.00 | 70.00 |"
    )
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[3:]] == list(CATEGORIES)
    assert lines[-1] == lines[2].replace("all", "change style")
    assert lines[3] == "| random | 0 |" + " - |" * 11
    assert scores_table({"": [full]}, "pie-bench").splitlines() == lines[:3]


def test_the_table_averages_what_there_is_and_leaves_out_what_is_missing():
    given = {"random": [scores(20.0), scores(None)], "change pose": [scores(30.0)]}
    lines = scores_table(given, "unedited").splitlines()
    assert lines[0] == "| pixels of the part alone | edits | PSNR | MSE x 10^4 | SSIM x 10^2 |"
    assert lines[2] == "| all | 3 | 25.00 | 12.30 | 50.00 |"
    assert lines[3] == "| random | 2 | 20.00 | 12.30 | 50.00 |"
    assert NO_WEIGHTS.missing == "CLIP score, structure distance and LPIPS are left out: no folder of weights is given"


def test_perfect_edits_of_a_folder_leave_the_rest_untouched(tmp_path: Path):
    requests = read_edits(write_pie_folder(tmp_path / "pie"), "pie", EditSettings())
    source = drawn("red")[None]
    by_category: dict[str, list[EditScores]] = {}
    for request, (_, colour, _) in zip(requests, EDITS.values(), strict=True):
        assert request.mask is not None and request.edit_prompt == scene(colour).caption
        inside = mask_pixels(request.mask, 512, 512)[None]
        by_category[category(request.name)] = score_edits(
            drawn(colour)[None], source, inside, [request.edit_prompt], NO_WEIGHTS, "unedited"
        )
    assert scores_table(by_category, "unedited").splitlines()[2].startswith("| all | 3 | 100.00 | 0.00 | ")
