"""The first calls of a job: they find a batch size that fits, and say if the network does not compile."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.jobs.networks import LoadError, warm_up
from nti_batch.models.acceleration import PaddedPredictor
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module")
def networks(tiny_model: Path) -> StableDiffusion:
    return StableDiffusion.load(ModelSource(str(tiny_model)))


def inputs(networks: StableDiffusion) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timestep and embedding of one image."""
    return torch.randn(4, 8, 8), torch.tensor(100), networks.embed_prompts(["a circle"])[0]


def limited(networks: StableDiffusion, rows: int) -> Predictor:
    """A network whose calls with more rows do not fit the memory."""

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        if len(latents) > rows:
            raise torch.OutOfMemoryError
        return networks.predict(latents, timesteps, embeddings)

    return predict


@pytest.mark.parametrize(("fits", "expected"), [(8, 8), (5, 4), (1, 1), (0, None)])
def test_the_first_calls_find_a_batch_size_that_fits(networks: StableDiffusion, fits: int, expected: int | None):
    prompt = inputs(networks)[2]
    pool = InversionPool[int](limited(networks, fits), networks.schedule(2), InversionSettings(), prompt, 8)
    pool.predict = PaddedPredictor(pool.predict, lambda: pool.batch_size)
    if expected is None:
        with pytest.raises(torch.OutOfMemoryError):
            warm_up(pool, networks.predict, inputs(networks))
    else:
        warm_up(pool, networks.predict, inputs(networks))
        assert pool.batch_size == expected


def test_the_calls_of_the_vae_must_fit_beside_the_first_calls(networks: StableDiffusion):
    def use_vae(images: int) -> None:
        if images > 2:
            raise torch.OutOfMemoryError

    pool = InversionPool[int](networks.predict, networks.schedule(2), InversionSettings(), inputs(networks)[2], 8)
    warm_up(pool, networks.predict, inputs(networks), use_vae)
    assert pool.batch_size == 2


def test_a_network_that_does_not_compile_is_an_error_in_one_line(networks: StableDiffusion):
    def stopped(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return latents

    prompt = inputs(networks)[2]
    predict = torch.compile(stopped, backend="eager", fullgraph=True)
    pool = InversionPool[int](predict, networks.schedule(2), InversionSettings(), prompt, 2)
    with pytest.raises(LoadError, match=r"the UNet cannot be compiled here: .*; leave model\.compile out$"):
        warm_up(pool, networks.predict, inputs(networks))


@pytest.mark.parametrize("wrong", ["prediction", "gradient"])
def test_a_compiled_network_with_wrong_results_is_refused(networks: StableDiffusion, wrong: str):
    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        right = networks.predict(latents, timesteps, embeddings)
        if wrong == "prediction":
            return right.flip(-1)
        return right + (embeddings - embeddings.detach()).sum()

    pool = InversionPool[int](predict, networks.schedule(2), InversionSettings(), inputs(networks)[2], 2)
    with pytest.raises(LoadError, match=f"the compiled UNet is wrong here: its {wrong} differs from the UNet's own by"):
        warm_up(pool, networks.predict, inputs(networks))
