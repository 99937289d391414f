"""`nti-batch export`."""

from pathlib import Path
from typing import Literal

from nti_batch.exit_codes import DONE, ERROR, SOME_FAILED
from nti_batch.output.export import choose_ids, export_run
from nti_batch.output.inversions import open_inversions
from nti_batch.terminal import print_error, print_line


def export(
    out: Path,
    folder: Path,
    format: Literal["diffusers"] = "diffusers",
    shard: list[str] | None = None,
    key: list[str] | None = None,
) -> int:
    """Write inversions in the layout of diffusers' NullTextPipeline.

    Args:
        out: Output folder of `nti-batch invert`.
        folder: Folder to write to.
        format: Layout of the files.
        shard: Shards to export; all if it is left out.
        key: Keys of the images to export; all if it is left out.
    """
    run = open_inversions(out)
    exported = export_run(run, folder, choose_ids(run, shard, key))
    there = f", {exported.existing} were there" if exported.existing else ""
    left_out = f", {exported.failed} left out, whose inversion has failed" if exported.failed else ""
    print_line(f"{folder}: {exported.written} inversions written{there}{left_out}")
    for damage in exported.damage:
        print_error(f"{damage}: its inversions are left out")
    if exported.damage:
        return ERROR
    return SOME_FAILED if exported.failed else DONE
