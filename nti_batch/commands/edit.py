"""`nti-batch edit`: the job, or with `--inversions` one image."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from PIL import Image

from nti_batch.commands.parser import function_parser, run_function
from nti_batch.data.shards import work_units
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.editing.editor import edit_image
from nti_batch.exit_codes import DONE
from nti_batch.files import atomic_open, check_new_file, store_address, translate_os_errors
from nti_batch.jobs.edit_flags import EditDataFlags, EditModelFlags
from nti_batch.jobs.edit_module import EditModule
from nti_batch.jobs.flags import OutputFlags
from nti_batch.jobs.help import HelpText
from nti_batch.jobs.metrics import MetricsFlags
from nti_batch.jobs.parser import JobCommand, parse_flags, silence_warnings
from nti_batch.jobs.ranks import JobPart
from nti_batch.jobs.run import Job, build_job, record_writer, run_job
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.fingerprint import check_fingerprint
from nti_batch.models.source import Lora
from nti_batch.models.supported import ModelDescription
from nti_batch.models.weights import check_model
from nti_batch.output.edits import EDIT
from nti_batch.output.inversions import open_inversions, read_run
from nti_batch.output.run_folder import OutputRun
from nti_batch.output.serialization import StoredInversion
from nti_batch.phrases import check_text
from nti_batch.plans.missing_edits import EditPlan, check_pipes, read_edit_list
from nti_batch.report.preview import draw_preview
from nti_batch.settings import EditRunSettings
from nti_batch.terminal import print_line

ONE_IMAGE = {"--inversions", "--key", "--prompt", "--shard"}
"""Flags of which each chooses the edit of one image."""

ONE_IMAGE_USAGE = """nti-batch edit --inversions RUN --key KEY --output FILE.png [--prompt TEXT]
      [--shard SHARD] [--edit.FLAG VALUE ...]"""

COMMAND = JobCommand(
    name="edit",
    sections={
        "model": EditModelFlags,
        "data": EditDataFlags,
        "output": OutputFlags,
        "edit": EditSettings,
        "metrics": MetricsFlags,
    },
    help=HelpText(
        description="Edit the images of an inversion run, or reconstruct them. The same command resumes a run. Each "
        "flag is also a key of a YAML file, and those of `edit` are also keys of a list of edits.",
        needed=(("data.inversions",), ("output.dir",)),
        example="nti-batch edit --data.inversions=inversions --data.edits=edits.jsonl --output.dir=edits",
        ending=f"one image, without a job (nti-batch edit --inversions RUN --help):\n  {ONE_IMAGE_USAGE}",
    ),
)


def edit(argv: Sequence[str]) -> int:
    """Make the edits that are not committed yet, or edit one image."""
    if ONE_IMAGE.isdisjoint(argument.partition("=")[0] for argument in argv):
        return run_job(build_edit_job, argv)
    return run_function(edit_one, argv, one_image_parser())


def one_image_parser() -> ArgumentParser:
    """The parser of the edit of one image."""
    return function_parser(edit_one, "nti-batch edit", as_positional=False, usage=" ".join(ONE_IMAGE_USAGE.split()))


def build_edit_job(argv: Sequence[str], stop: StopSignals) -> Job:
    """Build the job from its flags, before any weights are loaded.

    Raises:
        ValueError: If the user's settings are wrong.
    """
    flags = parse_flags(COMMAND, argv)
    model: EditModelFlags = flags.model
    data: EditDataFlags = flags.data
    output: OutputFlags = flags.output
    inversions = open_inversions(data.inversions, output.spool)
    source = model.source(inversions.settings.source)
    check_model(source, ModelDescription.of(source))
    check_fingerprint(source, inversions.settings.fingerprint)
    settings = EditRunSettings(
        model_name=model.name,
        model_config=model.config,
        model_vae=model.vae,
        model_loras=Lora.parse_all(model.loras),
        inversions=store_address(data.inversions) or os.path.realpath(inversions.out),
        edits=data.edit_list,
        edit_prompt=data.edit_prompt,
        units_per_shard=data.units_per_shard,
        edit=flags.edit,
    )
    requests = read_edit_list(settings, inversions)
    check_pipes(requests or (), inversions, data.allow_pipe)
    run = OutputRun.create(EDIT, output.dir, settings, inversions.shards, flags.dry_run, output.spool)
    plan = EditPlan(run, inversions, requests, data.redone, data.reading)
    plan.check_redo()
    inverted = inversions.settings
    writer = record_writer(run, data, output)
    module = EditModule(source, inverted.precision, inverted.inversion, model.batch_size, stop, writer.put)
    job = build_job(flags, plan, module, writer, stop, lambda: draw_preview(plan, module.networks))
    rank, ranks = job.trainer.global_rank, job.trainer.world_size
    plan.refuse_changed_requests(JobPart.parse(data.part).units(plan.units, rank, ranks))
    return job


def edit_one(
    inversions: str,
    key: str,
    output: Path,
    shard: str | None = None,
    prompt: str | None = None,
    edit: EditSettings = EditSettings(),
) -> int:
    """Edit one inverted image. Without --inversions, `nti-batch edit` is a job: see `nti-batch edit --help`.

    Args:
        inversions: Output folder of `nti-batch invert`, or its address in an object store.
        key: Key of the image.
        output: Image file to write, such as x.png.
        shard: Shard of the image, if several shards have the key.
        prompt: Prompt of the edit; left out, the source is reconstructed.
        edit: Settings of the edit.
    """
    started = time.monotonic()
    silence_warnings()
    if prompt is not None:
        check_text("--prompt", prompt)
    check_new_file("--output", output)
    file_format = _image_format(output)
    image = edit_image(find_inversion(inversions, key, shard), prompt, edit)
    with translate_os_errors(output), atomic_open(output) as file:
        image.save(file, file_format)
    print_line(f"{output}: {time.monotonic() - started:.1f} s")
    return DONE


def _image_format(path: Path) -> str:
    """Pillow's name of the format that a file name stands for.

    Raises:
        ValueError: If Pillow does not write such files.
    """
    known = Image.registered_extensions()
    file_format = known.get(path.suffix.lower())
    if file_format not in Image.SAVE:
        raise ValueError(f"--output is {str(path)!r}, allowed: an image file, such as x.png or x.jpg")
    return file_format


def find_inversion(out: Path | str, key: str, shard: str | None) -> StoredInversion:
    """The inversion of a key.

    Raises:
        ValueError: If there is none, or more than one.
    """
    run = open_inversions(out)
    units = work_units(run.shards, run.settings.units_per_shard)
    rows = [row for unit in units if shard in (None, unit.shard) for row in run.rows(unit)]
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
    (inversion,) = read_run(run, [(found[0].shard, key)])
    return inversion
