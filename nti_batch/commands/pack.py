"""`nti-batch pack`: images and captions become input shards."""

import sys
from collections import Counter
from pathlib import Path

from rich.progress import track

from nti_batch.console import ErrorConsole
from nti_batch.data.image_list import Columns, list_images
from nti_batch.data.pack import ShardWriter, StoppedError
from nti_batch.data.pack_plan import ShardLimits
from nti_batch.exit_codes import DONE, SOME_FAILED, STOPPED
from nti_batch.jobs.signals import StopSignals
from nti_batch.terminal import print_line


def pack(
    source: Path,
    out: Path,
    shard_images: int = 1_000,
    shard_bytes: int = 1_000_000_000,
    workers: int = 4,
    path_column: str = "path",
    caption_column: str = "caption",
    default_caption: str | None = None,
) -> int:
    """Pack images with their captions into WebDataset shards, for `nti-batch invert --data.shards='OUT/*.tar'`.

    SOURCE is a folder, in which cats/tom.jpg goes with cats/tom.txt, or a .csv, .jsonl or .parquet with a column of
    paths and one of captions. Relative paths are below the folder, or the table's folder. The command copies images
    unchanged: `nti-batch invert` decodes them, and records those that it cannot decode.

    OUT/00000.tar, 00001.tar, ... hold 000000000.jpg, .json (caption, key, path) and .txt of each image, as img2dataset
    names them. The same source gives the same bytes. After a stop or a kill, the same command resumes.

    The command reports each image that it cannot pack: no caption, no image, several images of one name, unreadable
    files. Exit codes: 0 all images are packed; 3 some are not; 75 a signal stopped the command; 2 the settings are
    wrong, or OUT holds shards of another source; 1 another error.

    Args:
        source: A folder of images, or a table of them.
        out: Folder of the shards.
        shard_images: Maximum number of images in a shard, up to 10000.
        shard_bytes: Maximum size of the images of a shard in bytes; a larger image has a shard of its own.
        workers: Number of shards that are written at the same time.
        path_column: Column of a table that has the paths.
        caption_column: Column of a table that has the captions.
        default_caption: Caption of the images that have none; left out, they are not packed.
    """
    limits = ShardLimits(images=shard_images, bytes=shard_bytes)
    with StopSignals() as stop:
        stop.handle_all()
        images = list_images(source, Columns(path=path_column, caption=caption_column), default_caption)
        writer = ShardWriter(images, out, limits, workers)
        try:
            with writer.opened():
                return _write(writer, stop)
        except StoppedError:
            print_line(f"stopped early; run the same command again to resume {out}", sys.stderr)
            return STOPPED


def _write(writer: ShardWriter, stop: StopSignals) -> int:
    console = ErrorConsole()
    finished = track(
        writer.write(lambda: stop.requested),
        "packing shards",
        total=len(writer.shards),
        console=console,
        disable=not console.is_terminal,
    )
    count, packed, stages = 0, 0, Counter[str]()
    for stats in finished:
        count += stats.count
        packed += stats.successes
        for failure in stats.failures:
            stages[failure.stage] += 1
            print_line(f"{failure.path!r}: {failure.stage}: {failure.error}", sys.stderr)
    print_line(f"{packed} of {count} images packed into {str(writer.out)!r}")
    if writer.source.note:
        print_line(f"not packed: {writer.source.note}")
    for stage, failed in sorted(stages.items()):
        print_line(f"{failed} failed at stage {stage!r}")
    return SOME_FAILED if stages else DONE
