"""`nti-batch pack`: images and captions become input shards."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from nti_batch.jobs.run import DONE, ERROR, SOME_FAILED, STOPPED, usage_error

if TYPE_CHECKING:
    from nti_batch.data.pack import ShardWriter
    from nti_batch.jobs.signals import StopSignals

ABOUT = """\
Pack images with their captions into WebDataset shards, for `nti-batch invert --data.shards='OUT/*.tar'`.

SOURCE is a folder, in which cats/tom.jpg goes with cats/tom.txt, or a .csv, .jsonl or .parquet with a column of
paths and one of captions. Relative paths are below the folder, or the table's folder. Images are copied as they are:
whether one can be decoded is for `nti-batch invert` to see and to record."""


OUTCOME = """\
OUT/00000.tar, 00001.tar, ... hold 000000000.jpg, .json (caption, key, path) and .txt of each image, as img2dataset
names them. The same source gives the same bytes. What was stopped or killed goes on with the same command.

What cannot be packed is told, a line each: no caption, no image, several of one name, no reading. Exit code 0: all is
packed; 3: all but what is told; 75: stopped by a signal; 2: the settings are wrong, or OUT is of another source;
1: anything else."""


def add_pack(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "pack",
        help="make shards of a folder or a table of images",
        description=ABOUT,
        epilog=OUTCOME,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a folder of images, or a table of them")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the shards")
    for flag, default, about in (
        ("--shard-images", 1_000, "most images in a shard, up to 10000"),
        ("--shard-bytes", 1_000_000_000, "most bytes of images in a shard; a larger image is alone in its own"),
        ("--workers", 4, "shards that are written at a time"),
    ):
        parser.add_argument(flag, metavar="N", type=int, default=default, help=f"{about} (default: {default})")
    for what in ("path", "caption"):
        about = f"column of a table that has the {what} (default: {what})"
        parser.add_argument(f"--{what}-column", metavar="NAME", default=what, help=about)
    parser.set_defaults(run=pack, takes_rest=False)


def pack(chosen: argparse.Namespace) -> int:
    """Write the shards that are not finished; return the exit code."""
    from nti_batch.data.image_list import Columns, list_images
    from nti_batch.data.pack import ShardWriter, StoppedError
    from nti_batch.data.pack_plan import ShardLimits
    from nti_batch.files import OutputError
    from nti_batch.jobs.signals import StopSignals
    from nti_batch.lock import UnitInUseError

    with StopSignals() as stop:
        stop.take_all()
        try:
            limits = ShardLimits(images=chosen.shard_images, bytes=chosen.shard_bytes)
            source = list_images(chosen.source, Columns(path=chosen.path_column, caption=chosen.caption_column))
            writer = ShardWriter(source, chosen.out, limits, chosen.workers)
            with writer.opened():
                return _write(writer, stop)
        except ValueError as error:
            return usage_error(error)
        except (OutputError, UnitInUseError) as error:
            print(f"nti-batch: {error}", file=sys.stderr)
            return ERROR
        except StoppedError:
            print(f"stopped early; run the same command again to continue {chosen.out}", file=sys.stderr)
            return STOPPED


def _write(writer: "ShardWriter", stop: "StopSignals") -> int:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
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
            console.out(f"{failure.path!r}: {failure.stage}: {failure.error}", highlight=False)
    print(f"{packed} of {count} images packed into {str(writer.out)!r}")
    for stage, failed in sorted(stages.items()):
        print(f"{failed} failed at stage {stage!r}")
    return SOME_FAILED if stages else DONE
