"""`nti-batch invert`: the main job."""

from collections.abc import Sequence

from nti_batch.data.samples import caption_source
from nti_batch.data.shards import refuse_pipes, work_units
from nti_batch.jobs.flags import InvertDataFlags, InvertModelFlags, InvertOutputFlags
from nti_batch.jobs.help import HelpText
from nti_batch.jobs.invert_module import NEEDS_GRADIENTS, InversionModule
from nti_batch.jobs.metrics import MetricsFlags
from nti_batch.jobs.parser import JobCommand, parse_flags
from nti_batch.jobs.run import Job, build_job, record_writer, run_job
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.fingerprint import model_fingerprint
from nti_batch.models.supported import ModelDescription
from nti_batch.models.weights import check_model
from nti_batch.output.inversions import INVERT
from nti_batch.output.run_folder import OutputRun
from nti_batch.output.serialization import StoredSize, stored_size
from nti_batch.plans.missing_images import ImagePlan
from nti_batch.report.preview import draw_preview
from nti_batch.settings import InversionRunSettings

COMMAND = JobCommand(
    name="invert",
    sections={"model": InvertModelFlags, "data": InvertDataFlags, "output": InvertOutputFlags, "metrics": MetricsFlags},
    help=HelpText(
        description="Invert the images of a folder or of WebDataset shards. The same command resumes a run. Each flag "
        "is also a key of a YAML file: --model.num_steps is num_steps below model.",
        needed=(("data.images", "data.shards"), ("output.dir",)),
        example="nti-batch invert --data.images=photos --output.dir=inversions",
    ),
    trainer_defaults={"inference_mode": False},
)


def invert(argv: Sequence[str]) -> int:
    """Invert the images that are not committed yet."""
    return run_job(build_invert_job, argv)


def build_invert_job(argv: Sequence[str], stop: StopSignals) -> Job:
    """Build the job from its flags, before any weights are loaded.

    Raises:
        ValueError: If the user's settings are wrong.
    """
    flags = parse_flags(COMMAND, argv)
    if flags.trainer.inference_mode:
        raise ValueError(NEEDS_GRADIENTS)
    model: InvertModelFlags = flags.model
    data: InvertDataFlags = flags.data
    output: InvertOutputFlags = flags.output
    shards, description = data.addresses(), ModelDescription.of(model.source)
    check_model(model.source, description)
    model.acceleration.check()
    settings = run_settings(model, data, output, description)
    units = work_units(shards, data.units_per_shard)
    run = OutputRun.create(INVERT, output.dir, settings, shards, flags.dry_run, output.spool)
    if not data.allow_pipe:
        # the job counts the images of all shards that the run was ever given
        refuse_pipes(run.shards.values())
    plan = ImagePlan(run, units, data.redone, data.reading, lambda: stop.requested)
    plan.check_redo()
    writer = record_writer(run, data, output)
    module = InversionModule(settings, model.batch_size, stop, writer.put, model.acceleration)
    job = build_job(
        flags, plan, module, writer, stop, lambda: draw_preview(plan, module.networks), new_size(settings, description)
    )
    model.acceleration.check_device(job.trainer.strategy.root_device)
    return job


def run_settings(
    model: InvertModelFlags, data: InvertDataFlags, output: InvertOutputFlags, description: ModelDescription
) -> InversionRunSettings:
    """Settings of the run.

    Raises:
        ValueError: If the caption or the size is wrong.
    """
    caption_source(data.caption)
    height, width = description.image_size(data.height, data.width)
    return InversionRunSettings(
        source=model.source,
        fingerprint=model_fingerprint(model.source),
        precision=model.precision,
        num_steps=model.num_steps,
        optimize_pooled=model.optimize_pooled,
        inversion=model.inversion,
        caption=data.caption,
        height=height,
        width=width,
        fit=data.fit,
        units_per_shard=data.units_per_shard,
        is_folder=data.images is not None,
        storage=output.storage,
    )


def new_size(settings: InversionRunSettings, description: ModelDescription) -> StoredSize:
    """Size of an inversion on disk before there is one."""
    latents = description.latents(settings.height, settings.width)
    embeddings = settings.num_steps, *description.embedding_shape
    return stored_size(settings.storage, latents, embeddings, settings.inversion.keeps_pivot)
