"""Inverts images at different timesteps by shared network calls.

A network call is efficient with many images, and images need different numbers of calls: one meets its threshold at
once, another takes ten updates. In lock-step, all would wait for the slowest one at every timestep. Here each image
advances by itself: every call takes the images that need the same kind of evaluation, with or without gradient.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nti_batch.diffusion.ddim import ddim_step
from nti_batch.diffusion.ddpm import noise_trajectory
from nti_batch.diffusion.guidance import Predictor, classifier_free_guidance
from nti_batch.diffusion.null_text import Candidate, Decision, InversionState
from nti_batch.diffusion.rounding import Storage, round_embeddings, round_values
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.diffusion.solvers import Moments, adam_step, polyak_step

logger = logging.getLogger(__name__)
K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class Work:
    """Network work done so far."""

    calls: int = 0
    full_calls: int = 0
    """Calls with `batch_size` images."""

    forwards: int = 0
    backwards: int = 0
    """Passes of single images. A row that is accepted counts too where the call computes gradients for others."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Outcome of one network call, not yet applied to the images. Rows are images."""

    predictions: Tensor
    embeddings: Tensor
    latents: Tensor
    """Latents after the step: up the pivot, or down with guidance."""

    losses: Tensor
    """Mean squared distance of `latents` to the pivot, [batch]; 0 on the way up."""

    values: list[float]
    """The losses on the host; zeros if no decision depends on them."""

    decisions: list[Decision]
    gradients: Tensor | None
    """Gradients of the losses by the embeddings, if any image gets an update."""


class InversionPool(Generic[K]):
    """Inversion of the images in flight on one device.

    There are two kinds of call, with and without gradient. With 2 `batch_size` - 1 images in flight, at least
    `batch_size` of them need one kind. So every call is full while the pool is (`capacity`), and only the tail of a
    job runs with smaller batches.
    """

    def __init__(
        self,
        predict: Predictor,
        schedule: DDIMSchedule,
        settings: InversionSettings,
        empty_embedding: Tensor,
        batch_size: int,
        storage: Storage = "float32",
    ) -> None:
        """Start empty.

        Args:
            predict: The frozen network; its parameters must not require gradients.
            schedule: Noise levels, on the network's device.
            settings: The settings of the method.
            empty_embedding: Embedding of the empty prompt, [tokens, dim].
            batch_size: Images in one network call, at least 1.
            storage: The form in which results will be stored; each is rounded to it when it is found.

        Raises:
            ValueError: If `batch_size` is below 1, or the solver does not take so many steps.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, allowed: at least 1")
        settings.check_num_steps(schedule.num_steps)
        self.predict, self.schedule, self.settings = predict, schedule, settings
        self.empty_embedding = empty_embedding
        self.batch_size = batch_size
        self.storage: Storage = storage
        self.work = Work()
        self._states: dict[K, InversionState] = {}

    def __len__(self) -> int:
        """Number of images in flight."""
        return len(self._states)

    @property
    def capacity(self) -> int:
        """Number of images in flight that keeps every call full."""
        return 2 * self.batch_size - 1

    def progress(self, key: K) -> float:
        """Share of the steps of an image in flight that are taken, from 0 to 1."""
        return self._states[key].progress

    def run(self, images: Iterable[tuple[K, Tensor, Tensor, int]]) -> Iterator[tuple[K, InversionState]]:
        """Invert images, given as the arguments of `admit`; yield each as it finishes."""
        for image in images:
            self.admit(*image)
            yield from self.make_room()
        yield from self.finish()

    def admit(self, key: K, latents: Tensor, prompt_embedding: Tensor, seed: int) -> None:
        """Take in an image.

        Args:
            key: Name of the image in what `advance` returns; no other image in flight may have it.
            latents: z*_0, [channels, height, width] float32; one shape for all images of a pool.
            prompt_embedding: C, [tokens, dim] float32.
            seed: Seed of the noise of edit-friendly DDPM inversion.
        """
        assert key not in self._states, key
        start = self.settings.choose_null_init(self.empty_embedding, prompt_embedding)
        is_ddpm = self.settings.method == "ddpm"
        self._states[key] = InversionState(
            settings=self.settings,
            storage=self.storage,
            num_steps=self.schedule.num_steps,
            prompt_embedding=prompt_embedding,
            start_embedding=round_values(self.storage, start),
            trajectory=noise_trajectory(self.schedule, latents, seed) if is_ddpm else [latents],
        )

    def make_room(self, stop_requested: Callable[[], bool] = lambda: False) -> Iterator[tuple[K, InversionState]]:
        """Advance until another image can be admitted; yield the images that finish.

        Args:
            stop_requested: Called before each network call; once it returns true, no further call is made.
        """
        while len(self) >= self.capacity and not stop_requested():
            yield from self.advance()

    def finish(self, stop_requested: Callable[[], bool] = lambda: False) -> Iterator[tuple[K, InversionState]]:
        """Advance until no image is in flight; yield the images that finish. `stop_requested` as in `make_room`."""
        while len(self) and not stop_requested():
            yield from self.advance()

    def advance(self) -> list[tuple[K, InversionState]]:
        """Make one network call, unless all images are finished without one; return the finished images.

        A call that does not fit the device's memory changes nothing but `batch_size`, which is halved.

        Raises:
            RuntimeError: Under `torch.inference_mode()`, in which torch computes no gradient.
            torch.OutOfMemoryError: If a call for one image does not fit.
        """
        states = self._next_call()
        if states:
            try:
                evaluation = self._evaluate(states)
            except torch.OutOfMemoryError:
                if len(states) == 1:
                    raise
                self._halve_batch_size(len(states))
                return []
            self._count(states, evaluation)
            self._apply(states, evaluation)
        finished = [(key, state) for key, state in self._states.items() if state.finished]
        for key, _ in finished:
            del self._states[key]
        return finished

    def _next_call(self) -> list[InversionState]:
        """The longest-waiting images of the kind of call that more images need, at most `batch_size`."""
        waiting = [s for s in self._states.values() if not s.finished]
        with_gradient, without = ([s for s in waiting if s.needs_gradient is kind] for kind in (True, False))
        return max(without, with_gradient, key=len)[: self.batch_size]

    def _halve_batch_size(self, images: int) -> None:
        self.batch_size = images // 2
        logger.warning(
            "a call with %d images does not fit the device's memory: continuing with %d", images, self.batch_size
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _count(self, states: list[InversionState], evaluation: Evaluation) -> None:
        self.work.calls += 1
        self.work.full_calls += len(states) == self.batch_size
        self.work.forwards += len(states)
        self.work.backwards += len(states) * (evaluation.gradients is not None)
        for state in states:
            state.forwards += 1
            state.backwards += evaluation.gradients is not None

    # --- one call --------------------------------------------------------------------------------

    def _evaluate(self, states: list[InversionState]) -> Evaluation:
        """Make one network call, take the step, compare it with the pivot, and decide what each image does."""
        needs_gradient = states[0].needs_gradient
        embeddings = torch.stack([s.next_embedding for s in states])
        latents = torch.stack([s.current_latents for s in states])
        asked, source, target = self._levels(states)
        timesteps = self.schedule.network_timesteps[asked]
        with torch.set_grad_enabled(needs_gradient):
            predictions = self.predict(latents, timesteps, embeddings.requires_grad_(needs_gradient))
            stepped = ddim_step(self.schedule, latents, self._guide(states, predictions), source, target)
            losses = (self._targets(states, stepped) - stepped).square().mean(dim=(1, 2, 3))
            has_losses = any(s.has_guided_step for s in states)
            values: list[float] = losses.tolist() if has_losses else [0.0] * len(states)
            decisions = [s.decide(value) for s, value in zip(states, values, strict=True)]
            updates = [i for i, decision in enumerate(decisions) if decision == "update"]
            gradients = self._gradients(_rows(losses, updates).sum(), predictions, embeddings) if updates else None
        return Evaluation(
            predictions.detach(), embeddings.detach(), stepped.detach(), losses.detach(), values, decisions, gradients
        )

    def _levels(self, states: list[InversionState]) -> tuple[Tensor, Tensor, Tensor]:
        """The level whose timestep the network gets, and both levels of the DDIM step; in one copy to the device."""
        levels = [(s.network_t, s.t, s.next_t) for s in states]
        asked, source, target = torch.tensor(levels, device=self.empty_embedding.device).unbind(1)
        return asked, source, target

    def _guide(self, states: list[InversionState], predictions: Tensor) -> Tensor:
        """Guided predictions where the embedding was the null embedding; the others stay as they are."""
        pairs = zip(states, predictions, strict=True)
        cond = torch.stack([p if s.current.cond is None else s.current.cond for s, p in pairs])
        return classifier_free_guidance(predictions, cond, self.settings.guidance_scale)

    def _targets(self, states: list[InversionState], stepped: Tensor) -> Tensor:
        return torch.stack([z if s.inverting else s.target for s, z in zip(states, stepped, strict=True)])

    def _gradients(self, loss: Tensor, predictions: Tensor, embeddings: Tensor) -> Tensor:
        """Gradients by the embeddings; the loss is the sum of the images' losses, so each row has its own gradient.

        Losses near 1e-5, each a mean over thousands of values, have gradients too small for half precision. A
        backward pass is linear in its input: each row enters with a largest value of 1, and is scaled back afterwards.
        """
        of_predictions = torch.autograd.grad(loss, predictions)[0]
        scale = of_predictions.abs().amax(dim=(1, 2, 3)).clamp(min=torch.finfo(of_predictions.dtype).tiny)
        of_embeddings = torch.autograd.grad(predictions, embeddings, of_predictions / scale.view(-1, 1, 1, 1))[0]
        return of_embeddings * scale.view(-1, 1, 1)

    # --- what each image does ---------------------------------------------------------------------

    def _apply(self, states: list[InversionState], evaluation: Evaluation) -> None:
        """Carry out the decisions."""
        for i, state in enumerate(states):
            candidate = Candidate(state.current.null_embedding, evaluation.latents[i].clone(), evaluation.values[i])
            match evaluation.decisions[i]:
                case "append pivot":
                    state.append_pivot(candidate.latents)
                case "keep cond":
                    state.current.cond = evaluation.predictions[i].clone()
                case "fail":
                    state.error = f"the loss at t = {state.t} of {self.schedule.num_steps} is {candidate.loss}"
                case "accept":
                    state.accept(candidate)
                case "evaluate again":
                    state.current.evaluations += 1
                case "update":
                    state.current.best = candidate
        updates = [i for i, decision in enumerate(evaluation.decisions) if decision == "update"]
        if updates:
            self._set_candidates([states[i] for i in updates], self._updated(states, evaluation, updates))
        backtracking = [s for s, d in zip(states, evaluation.decisions, strict=True) if d == "backtrack"]
        if backtracking:
            self._set_candidates(backtracking, torch.stack([s.backtrack() for s in backtracking]))

    def _updated(self, states: list[InversionState], evaluation: Evaluation, rows: list[int]) -> Tensor:
        """Embeddings after an update by the solver, [rows, tokens, dim]."""
        assert evaluation.gradients is not None
        updated = [states[i] for i in rows]
        gradients, embeddings = _rows(evaluation.gradients, rows), _rows(evaluation.embeddings, rows)
        if self.settings.solver != "polyak":
            moments = [s.current.moments or Moments.zeros_like(g) for s, g in zip(updated, gradients, strict=True)]
            for state, of_state in zip(updated, moments, strict=True):
                state.current.moments = of_state
            return adam_step(embeddings, gradients, moments, [s.learning_rate for s in updated])
        steps, squares = polyak_step(gradients, _rows(evaluation.losses, rows), [s.square for s in updated])
        for state, step, square in zip(updated, steps, squares, strict=True):
            state.current.step, state.square = step.clone(), square.clone()
        return embeddings + steps

    def _set_candidates(self, states: list[InversionState], embeddings: Tensor) -> None:
        """Give each image its next candidate, in the form in which it would be stored."""
        previous = torch.stack([s.previous_embedding for s in states])
        for state, embedding in zip(states, round_embeddings(self.storage, embeddings, previous), strict=True):
            state.current.null_embedding = embedding.clone()
            state.current.updates += 1
            state.current.evaluations += 1


def _rows(tensor: Tensor, rows: list[int]) -> Tensor:
    """Selected rows of a tensor; indexing with a list would wait for the device."""
    return torch.stack([tensor[i] for i in rows])
