"""`nti-batch export`."""

from pathlib import Path
from typing import Literal

from nti_batch.commands.flags import InputFlags
from nti_batch.data.shards import refuse_pipes
from nti_batch.exit_codes import DONE, ERROR, SOME_FAILED
from nti_batch.output.edits import EditRun, open_edits
from nti_batch.output.export import Exported, choose_ids, export_run
from nti_batch.output.export_images import ImageExport, Sources
from nti_batch.output.hub import export_hub
from nti_batch.output.inversions import open_inversions
from nti_batch.output.open_run import open_run
from nti_batch.output.table import RunTable, table_file
from nti_batch.terminal import print_error, print_line


def export(
    out: str,
    *,
    output: Path,
    format: Literal["diffusers", "images", "parquet", "hub"] = "diffusers",
    original_size: bool = False,
    shard: list[str] | None = None,
    key: list[str] | None = None,
    data: InputFlags = InputFlags(),
) -> int:
    """Write inversions for diffusers, edits as image files, the rows of a run as a table, or a dataset for the hub.

    Args:
        out: Output folder of `nti-batch invert`, or its address in an object store; for --format images that of
            `nti-batch edit`; parquet and hub take either.
        output: Folder to write to, or with --format parquet a file that ends in .parquet.
        format: 'diffusers' has the layout of NullTextPipeline, 'images' has files and a table of scores, 'parquet' a
            line for each image or edit, and 'hub' a folder for `hf upload`.
        original_size: Give each edit the size of its input image, at the place where it was cropped.
        shard: Shards to export; all if it is left out.
        key: Keys of the images to export; all if it is left out.
        data: Present place of the input, for --original_size.
    """
    if original_size and format != "images":
        raise ValueError("--original_size is for images: add --format images, and give a run of `nti-batch edit`")
    match format:
        case "images":
            edits = open_edits(out)
            sources = _sources(edits, data) if original_size else None
            return _report(ImageExport(edits, output, choose_ids(edits, shard, key), sources).write(), output, "edits")
        case "parquet":
            run = open_run(out)
            path, table = table_file(run, output), RunTable(run, choose_ids(run, shard, key))
            return _report(table.write(path), path, "rows", "the table lacks what it holds")
        case "hub":
            if shard or key:
                raise ValueError(
                    "--shard and --key do not go with --format hub, whose shards stay whole: leave them out"
                )
            exported = export_hub(open_run(out), output)
            return _report(exported, output, "parts", "the folder lacks what it holds")
        case "diffusers":
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


def _report(exported: Exported, folder: Path, noun: str, loss: str = "") -> int:
    """Print the counts and, for each damaged part, what is lost; return the exit code."""
    there = f", {exported.existing} were there" if exported.existing else ""
    reason = "whose inversion has failed" if noun == "inversions" else "for the reasons in edits.csv"
    left_out = f", {exported.failed} left out, {reason}" if exported.failed else ""
    print_line(f"{folder}: {exported.written} {noun} written{there}{left_out}")
    for damage in exported.damage:
        print_error(f"{damage}: {loss or f'its {noun} are left out'}")
    if exported.damage:
        return ERROR
    return SOME_FAILED if exported.failed else DONE
