"""Null-text optimization against a plain loop, a closed form, torch's Adam and other batch sizes."""

import math
import random
from dataclasses import dataclass

import pytest
import torch
from helpers.fakes import rowwise, stable_diffusion_schedule
from helpers.pools import EMPTY, NEVER, HostTraffic, Operations, images, invert
from torch import Tensor

from nti_batch.diffusion.call import Call
from nti_batch.diffusion.ddim import ddim_invert, ddim_sample, ddim_step
from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.null_text import InversionState, InvertedImage
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings, Solver
from nti_batch.diffusion.solvers import adam_step


@dataclass
class Reference:
    """What the authors' loop finds for one image."""

    embeddings: list[Tensor]
    latents: Tensor
    updates: list[int]


def reference_loop(
    predict: Predictor, schedule: DDIMSchedule, latents: Tensor, prompt: Tensor, settings: InversionSettings
) -> Reference:
    """One image as the authors' code inverts it, plainly.

    At step i a new Adam with the rate 0.01 (1 - i / 100) updates at most N times, and no more once the loss before an
    update was below 0.00001 + 0.00002 i. Both embeddings are evaluated again for the step down.
    """
    prompt = prompt[None]
    trajectory = ddim_invert(predict, schedule, latents[None], prompt)
    null, z, found, updates = EMPTY[None].double(), trajectory[-1], [], []
    for i in range(schedule.num_steps):
        t = torch.tensor([schedule.num_steps - i])
        timestep = schedule.network_timesteps[t]

        def guided(null: Tensor, z: Tensor = z, timestep: Tensor = timestep) -> Tensor:
            e_u, e_c = predict(z, timestep, null), predict(z, timestep, prompt)
            return settings.guidance_scale * e_c + (1 - settings.guidance_scale) * e_u

        null = null.clone().requires_grad_()
        optimizer = torch.optim.Adam([null], lr=1e-2 * (1 - i / 100))
        updates.append(0)
        for _ in range(settings.num_inner_steps):
            loss = (ddim_step(schedule, z, guided(null), t, t - 1) - trajectory[t - 1][0]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates[-1] += 1
            if loss < settings.early_stop_epsilon + settings.early_stop_growth * i:
                break
        null = null.detach()
        found.append(null[0])
        z = ddim_step(schedule, z, guided(null), t, t - 1)
    return Reference(found, z[0], updates)


def compare_with_reference(
    states: list[InvertedImage],
    schedule: DDIMSchedule,
    settings: InversionSettings,
    inputs: list[tuple[Tensor, Tensor]],
) -> list[Reference]:
    """Expect what the authors' loop finds."""
    found = [reference_loop(rowwise, schedule, *image, settings) for image in inputs]
    for state, expected in zip(states, found, strict=True):
        embeddings = state.null_embeddings, torch.stack(expected.embeddings)
        torch.testing.assert_close(*embeddings, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(state.latents, expected.latents, atol=1e-4, rtol=1e-4)
        assert state.inner_steps == expected.updates
    return found


def doubles(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(latents.double(), prompt.double()) for latents, prompt in images(count)]


@pytest.mark.parametrize("solver", ["adam", "authors"])
def test_with_the_early_stop_off_it_is_the_authors_loop(solver: Solver):
    schedule, settings = stable_diffusion_schedule(50), InversionSettings(solver=solver, num_inner_steps=4, **NEVER)
    states, _ = invert(rowwise, schedule, settings, doubles(3), batch_size=2, empty=EMPTY.double())
    found = compare_with_reference(states, schedule, settings, doubles(3))
    assert all(reference.updates == [4] * 50 for reference in found)


@pytest.mark.parametrize(("num_steps", "inner_steps"), [(50, 10), (50, 1), (20, 10), (100, 10)])
def test_the_solver_called_authors_is_the_authors_loop_update_by_update(num_steps: int, inner_steps: int):
    schedule, settings = (
        stable_diffusion_schedule(num_steps),
        InversionSettings(solver="authors", num_inner_steps=inner_steps),
    )
    inputs = doubles(4)[:3]  # the fourth amplifies rounding errors
    states, _ = invert(rowwise, schedule, settings, inputs, batch_size=2, empty=EMPTY.double())
    found = compare_with_reference(states, schedule, settings, inputs)
    assert {update for reference in found for update in reference.updates} >= {1, inner_steps}, "some should stop early"
    for state, reference in zip(states, found, strict=True):
        assert state.backwards == sum(reference.updates)
        assert state.forwards == 3 * num_steps + sum(reference.updates)  # pivot, prompt, updates and the step down


def test_the_solver_called_authors_updates_an_embedding_that_adam_accepts():
    schedule = stable_diffusion_schedule(50)
    (theirs,), _ = invert(rowwise, schedule, InversionSettings(solver="authors", early_stop_epsilon=1e9), images(1))
    (ours,), _ = invert(rowwise, schedule, InversionSettings(early_stop_epsilon=1e9), images(1))
    assert (theirs.inner_steps, theirs.forwards, theirs.backwards) == ([1] * 50, 200, 50)
    assert (ours.inner_steps, ours.forwards, ours.backwards) == ([0] * 50, 150, 0)


def test_the_solver_called_authors_changes_nothing_without_guidance():
    settings = InversionSettings(solver="authors", guidance_scale=1)
    (state,), pool = invert(rowwise, stable_diffusion_schedule(50), settings, images(1))
    assert all(torch.equal(row, EMPTY) for row in state.null_embeddings)
    assert (pool.work.forwards, pool.work.backwards) == (100, 0)


def test_more_steps_than_the_authors_learning_rate_has_are_refused():
    settings = InversionSettings(solver="authors")
    assert settings.learning_rate_at(1, 100) == pytest.approx(1e-4)
    schedule = stable_diffusion_schedule(101)
    with pytest.raises(ValueError, match=r"^num_steps is 101, allowed with the solver 'authors': 1 to 100"):
        InversionPool[int](rowwise, schedule, settings, EMPTY, batch_size=1)
    InversionPool[int](rowwise, schedule, InversionSettings(), EMPTY, batch_size=1)


def test_adam_is_torchs_adam_with_a_step_count_for_each_row():
    start, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    ours, means, squares = start.clone(), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    expected = []
    for row, (steps, rate) in enumerate([(7, 0.03), (2, 0.01)]):
        one = start[row].clone().requires_grad_()
        optimizer = torch.optim.Adam([one], lr=rate)
        for _ in range(steps):
            one.grad = (one.detach() - target[row]) ** 3
            optimizer.step()
        expected.append(one.detach())
    for k in range(1, 6):
        alone = (ours[:1], (ours[:1] - target[:1]) ** 3, means[:1], squares[:1])
        ours[:1], means[:1], squares[:1] = adam_step(*alone, [k], [0.03])
    for k in range(1, 3):
        ours, means, squares = adam_step(ours, (ours - target) ** 3, means, squares, [5 + k, k], [0.03, 0.01])
    torch.testing.assert_close(ours, torch.stack(expected))


def test_a_linear_predictor_goes_to_its_closed_form_optimum():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    w = 7.5
    latents, prompt = torch.randn(2, 4, 2, 2, generator=generator)
    prompt = prompt.view(4, 4)

    def predict(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        offset = 0.1 * (timesteps / 1000).view(-1, 1, 1, 1)
        noise: Tensor = (embeddings.flatten(1) @ matrix.T).view_as(latents) + offset * latents
        return noise

    schedule = stable_diffusion_schedule(2)
    settings = InversionSettings(
        num_inner_steps=4000, learning_rate=0.02, early_stop_epsilon=1e-11, early_stop_growth=0
    )
    (state,), _ = invert(predict, schedule, settings, [(latents, prompt)])

    z, t = state.trajectory[2][None], torch.tensor([2])
    e_c = predict(z, schedule.network_timesteps[t], prompt[None])
    unit = ddim_step(schedule, torch.zeros_like(z), torch.ones_like(z), t, t - 1)
    wanted = (state.trajectory[1] - ddim_step(schedule, z, torch.zeros_like(z), t, t - 1)) / unit
    e_u = (wanted - w * e_c) / (1 - w)
    best = matrix.T @ (e_u - predict(z, schedule.network_timesteps[t], torch.zeros(1, 4, 4))).flatten()
    torch.testing.assert_close(state.null_embeddings[0].flatten(), best, atol=1e-3, rtol=1e-3)


def test_without_guidance_the_embedding_stays_and_no_gradient_is_computed():
    schedule = stable_diffusion_schedule(50)
    (state,), pool = invert(rowwise, schedule, InversionSettings(guidance_scale=1), images(1))
    assert all(torch.equal(row, EMPTY) for row in state.null_embeddings)
    assert (pool.work.forwards, pool.work.backwards) == (100, 0)


def test_an_embedding_accepted_at_its_first_evaluation_costs_the_floor_of_the_method():
    settings = InversionSettings(early_stop_epsilon=1e9)
    (state,), pool = invert(rowwise, stable_diffusion_schedule(50), settings, images(1))
    assert (state.forwards, state.backwards, pool.work.forwards) == (150, 0, 150)
    assert state.inner_steps == [0] * 50


def test_an_image_in_company_is_bit_for_bit_the_image_alone():
    schedule, settings, inputs = stable_diffusion_schedule(20), InversionSettings(), images(9)
    together, _ = invert(rowwise, schedule, settings, inputs, batch_size=4)
    assert len({tuple(state.inner_steps) for state in together}) > 3, "the images should need different work"
    for state, image in zip(together, inputs, strict=True):
        (alone,), _ = invert(rowwise, schedule, settings, [image])
        assert torch.equal(state.null_embeddings, alone.null_embeddings)
        assert torch.equal(state.latents, alone.latents)
        assert (state.losses, state.inner_steps, state.forwards) == (alone.losses, alone.inner_steps, alone.forwards)


def test_sampling_with_the_embeddings_found_retraces_the_jobs_own_path():
    schedule, settings, (*_, (latents, prompt)) = stable_diffusion_schedule(50), InversionSettings(), images(3)
    (state,), _ = invert(rowwise, schedule, settings, [(latents, prompt)])
    null = [row[None] for row in state.null_embeddings]
    replay = ddim_sample(rowwise, schedule, state.trajectory[-1][None], prompt[None], null, 7.5)[0]
    torch.testing.assert_close(replay, state.latents, atol=1e-5, rtol=1e-5)
    plain = ddim_sample(rowwise, schedule, state.trajectory[-1][None], prompt[None], [EMPTY[None]] * 50, 7.5)[0]
    assert (replay - latents).square().mean() < (plain - latents).square().mean() / 10


def test_an_accepted_embedding_never_moves_again():
    schedule = stable_diffusion_schedule(20)
    pool = InversionPool[int](rowwise, schedule, InversionSettings(), EMPTY, batch_size=3)
    for key, image in enumerate(images(5)):
        pool.admit(key, *image, key)
    states, tensors = dict(pool._states), pool._tensors_in_use
    accepted: dict[tuple[int, int], Tensor] = {}
    while len(pool):
        done = dict(pool.advance())
        for key, state in states.items():
            found = done[key].null_embeddings if key in done else tensors.null_embeddings[state.row, 1:]
            for i in range(len(state.losses) if key in pool._states or key in done else 0):
                assert torch.equal(accepted.setdefault((key, i), found[i].clone()), found[i])
    assert len(accepted) == 5 * 20


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


def test_gradients_too_small_for_half_precision_arrive():
    def half(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        # the path of a network in float16: rounded on the way in and on the way back
        return (embeddings.half() * 2.0**-12).float().repeat_interleave(4, 1).view_as(latents)

    latents, prompt = torch.zeros(4, 4, 4), 1e-2 * torch.ones(4, 4)
    settings = InversionSettings(num_inner_steps=5, **NEVER)
    (state,), _ = invert(half, stable_diffusion_schedule(2), settings, [(latents, prompt)])
    assert (state.null_embeddings[0] > 0.01).all()


def test_an_image_without_numbers_fails_alone():
    inputs = images(4)
    inputs[2][0][0, 0, 0] = math.nan
    states, _ = invert(rowwise, stable_diffusion_schedule(10), InversionSettings(), inputs, batch_size=2)
    assert [bool(s.error) for s in states] == [False, False, True, False]
    assert states[2].error == "the loss at t = 10 of 10 is nan"


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ValueError, match=r"guidance_scale is 0\.5, allowed: at least 1; num_inner_steps is 0, allowed"):
        InversionSettings(guidance_scale=0.5, num_inner_steps=0)


def test_the_authors_learning_rates_and_thresholds():
    for settings in (InversionSettings(), InversionSettings(solver="authors")):
        for i in range(50):
            assert settings.learning_rate_at(50 - i, 50) == pytest.approx(1e-2 * (1 - i / 100))
            assert settings.threshold_at(50 - i, 50) == pytest.approx(1e-5 + i * 2e-5)


@pytest.mark.parametrize(("solver", "rates"), [("adam", (0.01, 0.0075, 0.00525)), ("authors", (0.01, 0.009, 0.0081))])
def test_the_learning_rate_at_20_steps(solver: Solver, rates: tuple[float, ...]):
    settings = InversionSettings(solver=solver)
    assert [settings.learning_rate_at(20 - i, 20) for i in (0, 10, 19)] == pytest.approx(list(rates))


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
