"""The network of the tests of prompt-to-prompt."""

from pathlib import Path

import pytest
import torch
from helpers.edited_samples import GAIN

from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module")
def networks(tiny_model: Path) -> StableDiffusion:
    """The tiny model with louder attention, so that a change of it is no rounding error."""
    networks = StableDiffusion.load(ModelSource(str(tiny_model)))
    with torch.no_grad():
        for name, parameter in networks.unet.named_parameters():
            if "to_q" in name or "to_k" in name:
                parameter.mul_(GAIN)
    return networks
