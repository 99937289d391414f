"""`nti-batch export`."""

from pathlib import Path
from typing import Literal

from nti_batch.commands.flags import InputFlags
from nti_batch.data.shards import refuse_pipes
from nti_batch.exit_codes import DONE, ERROR, SOME_FAILED
from nti_batch.output.edits import EditRun, open_edits
from nti_batch.output.export import Exported, choose_ids, export_run
from nti_batch.output.export_images import ImageExport, Sources
from nti_batch.output.inversions import open_inversions
from nti_batch.terminal import print_error, print_line


def export(
    out: Path,
    *,
    output: Path,
    format: Literal["diffusers", "images"] = "diffusers",
    original_size: bool = False,
    shard: list[str] | None = None,
    key: list[str] | None = None,
    data: InputFlags = InputFlags(),
) -> int:
    """Write inversions in the layout of diffusers' NullTextPipeline, or edits as image files with a table of scores.

    Args:
        out: Output folder of `nti-batch invert`; with --format images, of `nti-batch edit`.
        output: Folder to write to.
        format: Layout of the files: 'diffusers' or 'images'.
        original_size: Give each edit the size of its input image, at the place where it was cropped.
        shard: Shards to export; all if it is left out.
        key: Keys of the images to export; all if it is left out.
        data: Present place of the input, for --original_size.
    """
    if format == "images":
        edits = open_edits(out)
        sources = _sources(edits, data) if original_size else None
        return _report(ImageExport(edits, output, choose_ids(edits, shard, key), sources).write(), output, "edits")
    if original_size:
        raise ValueError("--original_size is for images: add --format images, and give a run of `nti-batch edit`")
    run = open_inversions(out)
    return _report(export_run(run, output, choose_ids(run, shard, key)), output, "inversions")


def _sources(edits: EditRun, data: InputFlags) -> Sources:
    """The input images of edits.

    Raises:
        ValueError: If the inversions are gone, or a shard is a shell command and that is not allowed.
    """
    inversions = open_inversions(edits.settings.inversions)
    shards = data.addresses() or inversions.shards
    if not data.allow_pipe:
        refuse_pipes(shards.values())
    return Sources(shards, inversions.settings.caption, data.allow_pipe)


def _report(exported: Exported, folder: Path, noun: str) -> int:
    """Print the counts, and return the exit code."""
    there = f", {exported.existing} were there" if exported.existing else ""
    reason = "whose inversion has failed" if noun == "inversions" else "for the reasons in edits.csv"
    left_out = f", {exported.failed} left out, {reason}" if exported.failed else ""
    print_line(f"{folder}: {exported.written} {noun} written{there}{left_out}")
    for damage in exported.damage:
        print_error(f"{damage}: its {noun} are left out")
    if exported.damage:
        return ERROR
    return SOME_FAILED if exported.failed else DONE
