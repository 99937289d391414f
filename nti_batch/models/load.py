"""Loads the model of a run onto the device."""

import torch

from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion


def load_model(source: ModelSource, precision: Precision) -> StableDiffusion:
    """The networks of a model, on the GPU if there is one.

    Raises:
        ValueError: If the model is missing or not supported.
    """
    networks = StableDiffusion.load(source, precision)
    return networks.to("cuda") if torch.cuda.is_available() else networks
