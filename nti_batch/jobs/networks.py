"""Loads the networks of a job, whose files may be damaged, and compiles its UNet."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError

from nti_batch.diffusion.batch_size import OneImage, both_calls, no_other_calls
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.pool import InversionPool
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion

logger = logging.getLogger(__name__)
MAX_COMPILED_ERROR = 0.1
"""Largest relative error of a compiled network; bfloat16 rounds by 0.02, and a wrong gradient is off by 1."""


class LoadError(Exception):
    """The networks cannot be loaded or compiled; the text names the model."""


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


def warm_up(
    pool: InversionPool[Any],
    network: Predictor,
    image: OneImage,
    beside: Callable[[int], object] = no_other_calls,
) -> None:
    """Make both kinds of call once, so that the network is compiled for them, and compare them with the network's own.

    The batch size is halved until the calls fit the memory.

    Args:
        pool: The pool that will make the calls.
        network: The network that is not compiled.
        image: Inputs of one image.
        beside: Makes the other calls of a batch size, those of the VAE, which must fit beside these.

    Raises:
        LoadError: If the network cannot be compiled, or is wrong then.
        torch.OutOfMemoryError: If not even one image fits.
    """
    from torch._dynamo.exc import TorchDynamoException

    while True:
        rows = pool.batch_size
        try:
            compiled = both_calls(pool.predict, image, rows, beside)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            pool.batch_size = rows // 2
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise LoadError(f"the UNet cannot be compiled here: {reason}; leave model.compile out") from error
        else:
            break
        logger.warning(
            "a call with %d images does not fit the device's memory: continuing with %d", rows, pool.batch_size
        )
        # a function keeps few compiled forms, and these will not be called again
        torch.compiler.reset()
        torch.cuda.empty_cache()
    for name, found, own in zip(("prediction", "gradient"), compiled, both_calls(network, image, 1), strict=True):
        error_share = ((found - own).norm() / own.norm()).item()
        if not error_share < MAX_COMPILED_ERROR:
            raise LoadError(
                f"the compiled UNet is wrong here: its {name} differs from the UNet's own by {error_share:.0%} of its "
                "norm; leave model.compile out"
            )
