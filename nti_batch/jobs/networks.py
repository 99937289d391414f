"""Loads the networks of a job, whose files may be damaged, and compiles its UNet."""

import logging
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from nti_batch.diffusion.pool import InversionPool
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion

logger = logging.getLogger(__name__)


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


def warm_up(pool: InversionPool[Any], latents: Tensor, timestep: Tensor, embedding: Tensor) -> None:
    """Make both kinds of call once, so that the network is compiled for them; halve the batch size until they fit.

    Args:
        pool: The pool that will make the calls.
        latents: Latents of one image; their values do not matter.
        timestep: A timestep of the network, a scalar tensor.
        embedding: Text embedding of one image.

    Raises:
        LoadError: If the network cannot be compiled.
        torch.OutOfMemoryError: If not even one image fits.
    """
    from torch._dynamo.exc import TorchDynamoException

    while True:
        rows = pool.batch_size
        inputs = latents.repeat(rows, 1, 1, 1), timestep.repeat(rows), embedding.repeat(rows, 1, 1)
        try:
            with torch.no_grad():
                pool.predict(*inputs)
            with torch.enable_grad():
                prediction = pool.predict(*inputs[:2], inputs[2].requires_grad_())
                torch.autograd.grad(prediction.sum(), inputs[2])[0].sum().item()  # waits for a GPU
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            pool.batch_size = rows // 2
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise LoadError(f"the UNet cannot be compiled here: {reason}; leave model.compile out") from error
        else:
            return
        logger.warning(
            "a call with %d images does not fit the device's memory: continuing with %d", rows, pool.batch_size
        )
        # a function keeps few compiled forms, and these will not be called again
        torch.compiler.reset()
        torch.cuda.empty_cache()
