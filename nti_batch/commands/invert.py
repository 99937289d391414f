"""`nti-batch invert`: the main job."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nti_batch.jobs.run import Job, assemble, read_settings, run_job, writer_of

if TYPE_CHECKING:
    from nti_batch.jobs.signals import StopSignals

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def invert(argv: Sequence[str]) -> int:
    """Invert what is not committed yet: the main job."""
    return run_job(prepare_inversion, argv)


def prepare_inversion(argv: Sequence[str], stop: "StopSignals") -> Job:
    """Everything that can be refused, before any weights are loaded.

    Raises:
        ValueError: If the user's settings are wrong.
    """
    from nti_batch.jobs.invert_datamodule import InversionDataModule
    from nti_batch.jobs.invert_module import NEEDS_GRADIENTS, InversionModule
    from nti_batch.jobs.writer import InversionWriter
    from nti_batch.models.source import ModelDescription, embedding_shape
    from nti_batch.output.serialization import StoredSize, stored_size
    from nti_batch.report import preview

    cli = read_settings(
        "invert",
        InversionModule,
        InversionDataModule,
        InversionWriter,
        argv,
        trainer_defaults={"inference_mode": False},
    )
    if cli.config.trainer.inference_mode:
        raise ValueError(NEEDS_GRADIENTS)
    module, data, writer = cli.model, cli.datamodule, writer_of(cli)
    assert isinstance(writer, InversionWriter)
    description = ModelDescription.of(module.source)
    data.attach(writer.run, description.size)
    description.check_size(data.height, data.width)
    module.storage, module.stop = writer.storage, stop
    settings = {**module.result_settings, **data.result_settings, "output.storage": writer.storage}
    writer.run.create(settings, data.urls, cli.config.dry_run)

    def new_size() -> StoredSize:
        assert data.height and data.width
        latents = description.latents(data.height, data.width)
        embeddings = module.num_steps, *embedding_shape(module.source, description.is_xl)
        return stored_size(writer.storage, latents, embeddings, module.null_text.method == "direct")

    return assemble(cli, stop, lambda: preview.draw_preview(data.run, data, module.networks), new_size)
