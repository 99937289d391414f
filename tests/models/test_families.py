"""Every family of models through the commands: inversion, reconstruction, edits, and the number of UNet calls."""

from pathlib import Path

import pytest
import torch
from helpers.edits import difference, edit, edited_images, edits_flag
from helpers.jobs import arguments
from helpers.tiny import captioned, png, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.data.images import decode_image
from nti_batch.editing.reconstruct import reconstruct
from nti_batch.json_object import Json
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.scores.metrics import psnr

FAMILIES = {
    "tiny_model": (77, 8),
    "tiny_v_model": (77, 8),
    "tiny_zero_snr_model": (77, 8),
    "tiny_xl_model": (78, 20),
}
"""Number of rows and width of an embedding, by fixture."""

SOURCE = "a small red circle, number 1"
"""Caption of image 001 of `captioned`."""


@pytest.mark.parametrize(
    ("family", "size"),
    list(zip(FAMILIES, [(16, 24), (16, 16), (16, 16), (24, 16)], strict=True)),
)
def test_inversions_are_reconstructed_from_their_files_and_edited(
    family: str, size: tuple[int, int], tmp_path: Path, request: pytest.FixtureRequest
):
    folder, (height, width) = request.getfixturevalue(family), size
    out, edits = tmp_path / "out", tmp_path / "edits"
    shard = write_shard(tmp_path / "a.tar", captioned(1, first=1))
    sizes = [f"--data.height={height}", f"--data.width={width}", "--model.early_stop_epsilon=0"]
    assert main([*arguments(folder, shard, out), *sizes, "--model.early_stop_growth=0"]) == 0

    (stored,) = read_inversions(out)
    assert stored.noise_latents.shape == (4, height // 2, width // 2)
    assert stored.null_embeddings.shape == (3, *FAMILIES[family])
    assert stored.metadata["inner_steps"] == [2, 2, 2]
    replayed = reconstruct(StableDiffusion.load(ModelSource(str(folder))), [stored], guided=True)
    original = decode_image(png(1), height, width)[None] / 255
    assert psnr(replayed, original).item() == pytest.approx(stored.metadata["psnr"], abs=1e-3)

    blended: dict[str, Json] = {
        "edit_prompt": "a small green ring",
        "blend_words": ["circle", "green ring"],
        "blend_start": 0.4,
    }
    flag = edits_flag(
        tmp_path / "edits.jsonl",
        {"key": "001", "name": "rebuilt"},
        {"key": "001", "name": "own", "edit_prompt": SOURCE},
        {"key": "001", "name": "other", "edit_prompt": "a small green ring", "equalizer": {"green": 3}},
        {"key": "001", "name": "none", **blended, "blend_threshold": 1.0},
        {"key": "001", "name": "all", **blended, "blend_threshold": 0.0},
    )
    assert main([*edit(out, edits), flag]) == 0
    edited = {name: pixels for (_, _, name), pixels in edited_images(edits).items()}
    assert {pixels.shape for pixels in edited.values()} == {(3, height, width)}
    assert difference(edited["own"], edited["rebuilt"]) <= 1
    assert difference(edited["none"], edited["rebuilt"]) <= 1
    assert difference(edited["other"], edited["rebuilt"]) > 1
    assert difference(edited["all"], edited["rebuilt"]) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_images_accepted_without_an_update_cost_three_forward_passes_a_step(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
):
    shard = write_shard(tmp_path / "a.tar", captioned(3))
    job = arguments(request.getfixturevalue(family), shard, tmp_path / "out", "--model.early_stop_epsilon=1e9")
    assert main(job) == 0
    costs = [(s.metadata["forwards"], s.metadata["backwards"]) for s in read_inversions(tmp_path / "out")]
    assert costs == [(3 * 3, 0)] * 3


@pytest.mark.parametrize("method", ["negative-prompt", "direct", "ddim", "ddpm"])
def test_the_other_methods_store_the_pooled_embedding(tiny_xl_model: Path, tmp_path: Path, method: str):
    shard, out = write_shard(tmp_path / "a.tar", captioned(2)), tmp_path / "out"
    assert main(arguments(tiny_xl_model, shard, out, f"--model.method={method}", "--output.storage=compact")) == 0
    assert main(["verify", str(out), "--recompute=2"]) == 0
    assert {s.null_embeddings.shape for s in read_inversions(out)} == {(3, 78, 20)}


@pytest.mark.parametrize("optimize_pooled", [False, True])
def test_a_reader_splits_off_the_pooled_embedding_which_changes_only_if_it_is_optimized(
    tiny_xl_model: Path, tmp_path: Path, optimize_pooled: bool
):
    shard, out = write_shard(tmp_path / "a.tar", captioned(1)), tmp_path / "out"
    flags = ["--model.null_init=prompt", f"--model.optimize_pooled={str(optimize_pooled).lower()}"]
    never = ["--model.early_stop_epsilon=0", "--model.early_stop_growth=0"]
    assert main([*arguments(tiny_xl_model, shard, out), *flags, *never]) == 0
    (stored,) = read_inversions(out)
    tokens, pooled = stored.split_null_embeddings()
    assert tokens.shape == (3, 77, 20)
    assert pooled is not None
    start = StableDiffusion.load(ModelSource(str(tiny_xl_model))).embed_prompts([stored.prompt])[0, -1, :6]
    assert torch.equal(pooled, start.expand(3, 6)) == (not optimize_pooled)


def test_embeddings_without_a_pooled_row_are_not_split(tiny_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "a.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "out")) == 0
    (stored,) = read_inversions(tmp_path / "out")
    tokens, pooled = stored.split_null_embeddings()
    assert pooled is None
    assert torch.equal(tokens, stored.null_embeddings)
