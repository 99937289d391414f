"""Network calls of the pool: how many images they have, what they cost the host, and where memory does not suffice."""

import random

import pytest
import torch
from helpers.fakes import rowwise, stable_diffusion_schedule
from helpers.pools import EMPTY, HostTraffic, Operations, images, invert
from torch import Tensor

from nti_batch.diffusion.call import Call
from nti_batch.diffusion.null_text import InversionState
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.settings import InversionSettings, Solver


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_calls_are_full_until_the_last_image_is_admitted_and_then_it_drains(batch_size: int):
    schedule, inputs = stable_diffusion_schedule(10), images(4 * batch_size + 3)
    random.Random(0).shuffle(inputs)
    pool = InversionPool[int](rowwise, schedule, InversionSettings(), EMPTY, batch_size)
    for key, image in enumerate(inputs):
        while len(pool) == pool.capacity:
            pool.advance()
            assert pool.work.full_calls == pool.work.calls
        pool.admit(key, *image, key)
    while len(pool):
        pool.advance()
    assert pool.advance() == []
    if batch_size > 1:
        assert pool.work.full_calls < pool.work.calls


@pytest.mark.parametrize("solver", ["adam", "authors", "polyak"])
@pytest.mark.parametrize("storage", ["float32", "compact"])
def test_a_network_call_costs_one_read_and_the_host_waits_for_nothing_else(solver: Solver, storage: Storage):
    schedule = stable_diffusion_schedule(5)
    settings = InversionSettings(solver=solver, num_inner_steps=3)
    pool = InversionPool[int](rowwise, schedule, settings, EMPTY, 4, storage)
    for key, (latents, prompt) in enumerate(images(7)):
        pool.admit(key, latents, prompt, key)
    with HostTraffic() as traffic:
        while len(pool):
            pool.advance()
    assert 0 < traffic.reads <= pool.work.calls
    assert traffic.writes == 0
    # what a call evaluates, and what follows; with updates, of which images, and their rates
    assert 2 * pool.work.calls <= traffic.uploads <= 4 * pool.work.calls


@pytest.mark.parametrize(("updates", "most"), [(0, 60), (3, 95)])
def test_the_operations_of_a_call_do_not_grow_with_its_images(updates: int, most: int):
    """Each takes the host some microseconds."""
    threshold = 0.0 if updates else 1e9
    settings = InversionSettings(num_inner_steps=max(1, updates), early_stop_epsilon=threshold, early_stop_growth=0.0)
    counts = []
    for batch_size in (4, 16):
        pool = InversionPool[int](rowwise, stable_diffusion_schedule(50), settings, EMPTY, batch_size, "compact")
        for key in range(batch_size):
            pool.admit(key, torch.ones(4, 2, 2), torch.ones(4, 4), key)
        with Operations() as operations:
            while len(pool):
                pool.advance()
        counts.append(operations.count / pool.work.calls)
    assert counts[0] == pytest.approx(counts[1], rel=0.05)
    assert max(counts) <= most


@pytest.mark.parametrize("solver", ["adam", "authors", "polyak"])
def test_with_two_calls_on_their_way_every_image_is_that_of_one_after_the_other(solver: Solver):
    schedule, settings, inputs = stable_diffusion_schedule(20), InversionSettings(solver=solver), images(17)
    expected, _ = invert(rowwise, schedule, settings, inputs, batch_size=4)
    pool = InversionPool[int](rowwise, schedule, settings, EMPTY, 4)
    pool.most_calls = 2
    assert pool.capacity == 11
    beside, kinds = 0, []

    real = pool._start

    def start(states: list[InversionState]) -> Call:
        nonlocal beside
        beside += len(pool._calls)
        kinds.append([call.needs_gradient for call in pool._calls] + [states[0].needs_gradient])
        assert len({id(s) for call in pool._calls for s in call.states} & {id(s) for s in states}) == 0
        return real(states)

    pool._start = start  # type: ignore[method-assign]
    done = dict(pool.run((key, *image, key) for key, image in enumerate(inputs)))
    assert beside > len(kinds) / 4, "many calls start while another one is on its way"
    assert [True, True] not in kinds, "two graphs would take twice the memory"
    for key, one in enumerate(expected):
        assert torch.equal(done[key].null_embeddings, one.null_embeddings)
        assert torch.equal(done[key].latents, one.latents)
        assert (done[key].losses, done[key].forwards) == (one.losses, one.forwards)


@pytest.mark.parametrize(("fits", "batch_size"), [(12, 8), (8, 8), (4, 4), (1, 1)])
def test_calls_that_do_not_fit_are_made_alone_and_then_with_fewer_images(fits: int, batch_size: int):
    """The memory holds the graphs of so many images, and a call beside them takes half of a graph."""
    pool: InversionPool[int]

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        graphs = sum(len(call.states) for call in pool._calls if call.needs_gradient)
        if graphs + len(latents) * (1 if torch.is_grad_enabled() else 0.5) > fits:
            raise torch.OutOfMemoryError("too large")
        return rowwise(latents, timesteps, embeddings)

    schedule, settings, inputs = stable_diffusion_schedule(10), InversionSettings(), images(30)
    pool = InversionPool[int](predict, schedule, settings, EMPTY, 8)
    pool.most_calls = 2
    done = dict(pool.run((key, *image, key) for key, image in enumerate(inputs)))
    expected, _ = invert(rowwise, schedule, settings, inputs)
    assert (pool.batch_size, pool.most_calls) == (batch_size, 2 if fits == 12 else 1)
    for key, one in enumerate(expected):
        assert torch.equal(done[key].null_embeddings, one.null_embeddings)
        assert (done[key].forwards, done[key].inner_steps) == (one.forwards, one.inner_steps)
