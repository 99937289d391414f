"""Loads the model of a run."""

from collections.abc import Mapping

import torch

from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.manifest import Json


def model_of(settings: Mapping[str, Json]) -> tuple[ModelSource, Precision]:
    """The model of a run, from its settings.

    Raises:
        ValueError: If they do not name one.
    """
    try:
        name, revision, variant, precision = (
            settings[f"model.{part}"] for part in ("name", "revision", "variant", "precision")
        )
    except KeyError as error:
        raise ValueError(f"the run's settings are damaged: they lack {error}") from error
    # runs that were made before there were single files have no such setting
    config = settings.get("model.config")
    return ModelSource(name, revision, variant, config), precision  # type: ignore[arg-type,return-value]


def load_model(settings: Mapping[str, Json]) -> StableDiffusion:
    """The networks of a run, on the GPU if there is one."""
    networks = StableDiffusion.load(*model_of(settings))
    return networks.to("cuda") if torch.cuda.is_available() else networks
