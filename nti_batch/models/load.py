"""Loads the model of a run onto the device."""

from pathlib import Path

import torch

from nti_batch.models.fingerprint import compare_fingerprints, model_fingerprint
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion


def load_model(
    model: str | Path | ModelSource, precision: Precision = "float32", fingerprint: str | None = None
) -> StableDiffusion:
    """Load a model onto the GPU if there is one.

    Args:
        model: A diffusers checkpoint folder, a hub id such as 'user/model', 'demo' for the embedded model, or a
            `ModelSource`, which has the other flags of `--model` too.
        precision: Precision of the UNet.
        fingerprint: Fingerprint of the model that a run was made with; None if it is not known.

    Raises:
        ValueError: If the model is missing, not supported or another one than the run's.
    """
    source = model if isinstance(model, ModelSource) else ModelSource(str(model))
    found = model_fingerprint(source)
    compare_fingerprints(source, found, fingerprint)
    with torch.inference_mode(False):  # its weights could not be in a graph of gradients
        networks = StableDiffusion.load(source, precision)
    networks.fingerprint = found
    return networks.to("cuda") if torch.cuda.is_available() else networks
