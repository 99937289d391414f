"""Loads the networks of a job, whose files may be damaged."""

from safetensors import SafetensorError

from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion


class LoadError(Exception):
    """The networks cannot be loaded; the text names the model."""


def load_networks(source: ModelSource, precision: Precision) -> StableDiffusion:
    """Load the networks of a model.

    Raises:
        LoadError: If a file is missing or damaged.
    """
    try:
        return StableDiffusion.load(source, precision)
    # RuntimeError: torch's for weights of other shapes
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        name = "" if str(error).startswith("model ") else f"model {source.name!r} does not load: "
        raise LoadError(f"{name}{error}") from error
