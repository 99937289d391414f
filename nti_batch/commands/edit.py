"""`nti-batch edit`: the job, or with `--inversions` one picture."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nti_batch.jobs.run import DONE, Job, assemble, read_settings, run_job, silence_warnings, usage_error, writer_of

if TYPE_CHECKING:
    from nti_batch.jobs.signals import StopSignals
    from nti_batch.output.serialization import StoredInversion


def edit(argv: Sequence[str]) -> int:
    """Make the edits that are not committed yet, or one picture."""
    is_one_picture = any(argument.partition("=")[0] == "--inversions" for argument in argv)
    return edit_one(argv) if is_one_picture else run_job(prepare_edits, argv)


def prepare_edits(argv: Sequence[str], stop: "StopSignals") -> Job:
    """Everything that can be refused, before any weights are loaded.

    Raises:
        ValueError: If the user's settings are wrong.
    """
    from nti_batch.diffusion.edits import EditSettings
    from nti_batch.jobs.edit_datamodule import EditDataModule
    from nti_batch.jobs.edit_module import EditModule
    from nti_batch.jobs.writer import EditWriter
    from nti_batch.models.source import ModelDescription
    from nti_batch.report.edit_preview import draw_edits

    cli = read_settings("edit", EditModule, EditDataModule, EditWriter, argv, sections={"edit": EditSettings})
    module, data, writer = cli.model, cli.datamodule, writer_of(cli)
    defaults = cli.config_init["edit"]
    module.attach(data.inverted_with)
    module.stop = stop
    ModelDescription.of(module.source)
    data.attach(writer.run, defaults)
    told = {f"edit.{name}": value for name, value in defaults.to_json().items()}
    writer.run.create({**module.result_settings, **data.result_settings, **told}, data.urls, cli.config.dry_run)
    data.refuse_other_edits(data.units_of(cli.trainer.global_rank, cli.trainer.world_size))
    return assemble(cli, stop, lambda: draw_edits(data.run, data, module.networks), lambda: None)


def one_picture_parser() -> argparse.ArgumentParser:
    """The flags of `edit_one`."""
    from nti_batch.diffusion.edits import EditSettings

    parser = argparse.ArgumentParser(
        prog="nti-batch edit",
        description="Edit one inverted image. Without --inversions, `nti-batch edit` is a job: see "
        "`nti-batch edit --help`.",
    )
    parser.add_argument("--inversions", required=True, metavar="OUT", help="output folder of `nti-batch invert`")
    parser.add_argument("--key", required=True, help="of the image")
    parser.add_argument("--shard", help="of the image, where several shards have the key")
    parser.add_argument("--prompt", help="of the edit; left out, the source is rebuilt")
    parser.add_argument("--output", required=True, metavar="FILE", help="the picture to write, such as x.png")
    for field in dataclasses.fields(EditSettings):
        default = getattr(EditSettings(), field.name) or "none"
        parser.add_argument(f"--{field.name}", help=f"as --edit.{field.name} of the job; default: {default}")
    return parser


def edit_one(argv: Sequence[str]) -> int:
    """Edit one image into a file."""
    started = time.monotonic()
    chosen = one_picture_parser().parse_args(argv)

    from nti_batch.diffusion.edits import EditSettings
    from nti_batch.editing.editor import edit_image
    from nti_batch.editing.requests import read_settings as read_edit_settings

    silence_warnings()
    try:
        names = (field.name for field in dataclasses.fields(EditSettings))
        settings = read_edit_settings({name: getattr(chosen, name) for name in names}, EditSettings())
        inversion = find_inversion(Path(chosen.inversions), chosen.key, chosen.shard)
        picture = edit_image(inversion, chosen.prompt, settings)
        picture.save(chosen.output)
    except (ValueError, OSError) as error:
        return usage_error(error)
    print(f"{chosen.output}: {time.monotonic() - started:.1f} s")
    return DONE


def find_inversion(out: Path, key: str, shard: str | None) -> "StoredInversion":
    """The inversion of a key.

    Raises:
        ValueError: If there is none, or more than one.
    """
    from nti_batch.output.inversions import InversionRun, read_inversions
    from nti_batch.output.status import units_of

    run = InversionRun(out)
    rows = [row for unit in units_of(run, allow_pipe=True) if shard in (None, unit.shard) for row in run.rows(unit)]
    found = [row for row in rows if row.key == key]
    where = f"{str(out)!r}" if shard is None else f"shard {shard!r} of {str(out)!r}"
    if not found:
        others = ", ".join(sorted({row.key for row in rows if row.status == "done"})[:5])
        raise ValueError(f"{where} has no key {key!r}; it has {others or 'no inversions'}")
    if len(found) > 1:
        shards = ", ".join(row.shard for row in found)
        raise ValueError(f"{where} has the key {key!r} in the shards {shards}: choose one with --shard")
    if found[0].status == "failed":
        raise ValueError(f"the inversion of {key!r} has failed at stage {found[0].stage!r}: {found[0].error}")
    (inversion,) = read_inversions(out, [(found[0].shard, key)])
    return inversion
