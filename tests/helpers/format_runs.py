"""Writes the small runs that `tests/output/formats` keeps of each format: `python -m helpers.format_runs FOLDER`."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from helpers.inversions import ORIGIN, SETTINGS, UNIT, inversion
from nti_batch import EditSettings
from nti_batch.diffusion.rounding import Storage, round_embeddings, round_values
from nti_batch.output.complete_mark import CompleteMark
from nti_batch.output.edits import EDIT
from nti_batch.output.inversions import INVERT
from nti_batch.output.run_folder import AnyRun, OutputRun
from nti_batch.output.serialization import LAYOUTS
from nti_batch.records import EditedImage, Failure, Inversion
from nti_batch.settings import EditRunSettings

SHARDS = {"shard[0]": "/data/shard[0].tar"}
EDIT_SETTINGS = EditRunSettings(
    model_name=None,
    model_config=None,
    inversions="/runs/float32",
    edits=None,
    edit_prompt="a blue cup",
    units_per_shard=3,
    edit=EditSettings(blend_words=("cup", "cup")),
)


def inverted(key: str, storage: Storage) -> Inversion:
    """An inversion that is rounded to a storage, with a pivot."""
    made = inversion(key)
    rows, previous = [], round_values(storage, made.start_embedding)
    for row in made.null_embeddings:
        previous = round_embeddings(storage, row[None], previous[None])[0]
        rows.append(previous)
    pivot = round_values(storage, made.noise_latents.expand(2, -1, -1, -1))
    start = round_values(storage, made.start_embedding)
    return replace(made, start_embedding=start, null_embeddings=torch.stack(rows), pivot=pivot)


def edited(key: str) -> EditedImage:
    """An edit of 4 x 4 pixels."""
    return EditedImage(
        unit=UNIT,
        key=key,
        name="blue",
        edit_prompt="a blue cup",
        request_sha256="0" * 64,
        input_sha256="1" * 64,
        pixels=torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4),
        psnr_unedited=30.0,
        ssim_unedited=0.9,
        mse_unedited=0.001,
        seconds=1.0,
    )


def write_run(run: AnyRun, records: list[Inversion] | list[EditedImage]) -> None:
    """Write records, a failure, and in a second part the first record again."""
    for again in (False, True):
        run.claim(UNIT)
        part = run.new_part(UNIT, ORIGIN)
        for record in records[:1] if again else records:
            part.add(record)
        if not again:
            part.add_failure(Failure(UNIT, "bad", "image", "it is HTML", records[0].name, "2" * 64))
        part.commit()
        run.release(UNIT)
    if run.kind is INVERT:
        run.mark_complete(UNIT, CompleteMark(len(records) + 1, "0" * 16))


def write_runs(folder: Path) -> None:
    """Write a run of each layout, and one of edits."""
    for storage, layout in LAYOUTS.items():
        settings = replace(SETTINGS, storage=storage, inversion=replace(SETTINGS.inversion, method="direct"))
        write_run(
            OutputRun.create(INVERT, folder / layout, settings, SHARDS),
            [inverted(key, storage) for key in ("a", "b/c")],
        )
    write_run(OutputRun.create(EDIT, folder / "edits", EDIT_SETTINGS, SHARDS), [edited("a"), edited("b/c")])


if __name__ == "__main__":
    write_runs(Path(sys.argv[1]))
