"""Starts processes quickly, by forking a server that has imported everything and computed nothing."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.models.unets.unet_2d_condition",
        "diffusers.schedulers.scheduling_ddim",
        "lightning.pytorch.cli",
        "nti_batch.cli",
        "nti_batch.jobs.invert_module",
        "nti_batch.report.preview",
        "nti_batch.jobs.progress",
        "pytest",
        "transformers.models.clip.modeling_clip",
        "transformers.models.clip.tokenization_clip",
    ]
)
