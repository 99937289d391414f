"""Loads the model of a run onto the device."""

import torch

from nti_batch.models.fingerprint import check_fingerprint
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion


def load_model(source: ModelSource, precision: Precision, fingerprint: str | None) -> StableDiffusion:
    """The networks of a run's model, on the GPU if there is one.

    Args:
        source: Place of the model.
        precision: Precision of the UNet.
        fingerprint: Fingerprint of the model that the run was made with; None if it is not known.

    Raises:
        ValueError: If the model is missing, not supported or another one than the run's.
    """
    check_fingerprint(source, fingerprint)
    networks = StableDiffusion.load(source, precision)
    return networks.to("cuda") if torch.cuda.is_available() else networks
