"""Images at different timesteps share network calls.

A network call wants many images, and images want different numbers of calls: one meets its threshold at
once, another takes ten updates. In lock-step all would wait for the slowest at every timestep. Here each image
goes its own way, and every tick takes the images that need the same kind of call and makes that one call.
"""

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nti_batch.diffusion.ddim import ddim_step
from nti_batch.diffusion.guidance import Predictor, classifier_free_guidance
from nti_batch.diffusion.null_text import InversionState, Look
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
    """Calls in which every slot held an image."""

    forwards: int = 0
    backwards: int = 0
    """Image evaluations; a row that is accepted in a call in which others are not counts, for it was computed."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What one network call found out; no image has moved yet. Rows are images."""

    noise: Tensor
    embeddings: Tensor
    stepped: Tensor
    """Where the images would go: one step up the pivot, or one down with guidance."""

    losses: Tensor
    """Mean squared distance of `stepped` to the pivot, [batch]; 0 on the way up."""

    values: list[float]
    """The losses on the host; empty if nothing depends on them."""

    gradients: Tensor | None
    """Of the losses by the embeddings, if any image is going to move."""


class InversionPool(Generic[K]):
    """Inversion of the images in flight on one device.

    There are two kinds of call, with and without gradient. With 2 batch_size - 1 images in flight, one kind is always
    wanted by at least `batch_size` of them: so every call is full while the pool is (`capacity`), and only the tail
    of a job runs with smaller batches.
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
            settings: Of the method.
            empty_embedding: Embedding of the empty prompt, [tokens, dim].
            batch_size: Images in one network call, at least 1.
            storage: The form in which results will be stored; they are rounded to it as they are found.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, allowed: at least 1")
        self.predict = predict
        self.schedule = schedule
        self.settings = settings
        self.empty_embedding = empty_embedding
        self.batch_size = batch_size
        self.storage: Storage = storage
        self.work = Work()
        self._states: dict[K, InversionState] = {}

    def __len__(self) -> int:
        """Images in flight."""
        return len(self._states)

    @property
    def capacity(self) -> int:
        """Images in flight that keep every call full."""
        return 2 * self.batch_size - 1

    def admit(self, key: K, latents: Tensor, prompt_embedding: Tensor) -> None:
        """Take in an image.

        Args:
            key: What `tick` will call it; no other image in flight may have it.
            latents: z*_0, [channels, height, width] float32; one shape for all images of a pool.
            prompt_embedding: C, [tokens, dim] float32.
        """
        assert key not in self._states, key
        start = self.settings.choose_null_init(self.empty_embedding, prompt_embedding)
        self._states[key] = InversionState(
            settings=self.settings,
            storage=self.storage,
            num_steps=self.schedule.num_steps,
            prompt_embedding=prompt_embedding,
            start_embedding=round_values(self.storage, start),
            trajectory=[latents],
        )

    def tick(self) -> list[tuple[K, InversionState]]:
        """Make one network call; return the images that it finished.

        A call that does not fit the device's memory changes nothing but `batch_size`, which are halved.

        Raises:
            RuntimeError: Under `torch.inference_mode()`, where no gradient can be had.
            torch.OutOfMemoryError: If a call for one image does not fit.
        """
        states = self._next_call()
        if not states:
            return []
        try:
            evaluation = self._evaluate(states)
        except torch.OutOfMemoryError:
            if len(states) == 1:
                raise
            self._halve_batch_size(len(states))
            return []
        self._count(states, evaluation)
        self._settle(states, evaluation)
        finished = [(key, state) for key, state in self._states.items() if state.finished]
        for key, _ in finished:
            del self._states[key]
        return finished

    def _next_call(self) -> list[InversionState]:
        """The longest-waiting images of the kind of call that more images want, at most `batch_size`."""
        with_gradient = [s for s in self._states.values() if s.needs_gradient]
        without = [s for s in self._states.values() if not s.needs_gradient]
        return max(without, with_gradient, key=len)[: self.batch_size]

    def _halve_batch_size(self, images: int) -> None:
        self.batch_size = images // 2
        logger.warning(
            "a call with %d images does not fit the device's memory: going on with %d", images, self.batch_size
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
        """The one network call of a tick, where it leads, and how far that is from the pivot."""
        want_gradient = states[0].needs_gradient
        embeddings = torch.stack([s.null_embedding if s.solving else s.prompt_embedding for s in states])
        latents = torch.stack([s.current_latents for s in states])
        asked, source, target = self._levels(states)
        timesteps = self.schedule.network_timesteps[asked]
        with torch.set_grad_enabled(want_gradient):
            noise = self.predict(latents, timesteps, embeddings.requires_grad_(want_gradient))
            stepped = ddim_step(self.schedule, latents, self._guide(states, noise), source, target)
            losses = (self._targets(states, stepped) - stepped).square().mean(dim=(1, 2, 3))
            values: list[float] = losses.tolist() if any(self.has_guided_step(s) for s in states) else []
            moving = [i for i, s in enumerate(states) if want_gradient and s.verdict(values[i]) == "move"]
            gradients = self._gradients(_rows(losses, moving).sum(), noise, embeddings) if moving else None
        return Evaluation(noise.detach(), embeddings.detach(), stepped.detach(), losses.detach(), values, gradients)

    def has_guided_step(self, state: InversionState) -> bool:
        """Whether the image can go down a step with what the call predicts."""
        return not state.inverting and (state.solving or not self.settings.guided)

    def _levels(self, states: list[InversionState]) -> tuple[Tensor, Tensor, Tensor]:
        """The level whose timestep the network is asked for, and those of the DDIM step; in one copy to the device."""
        levels = [(s.network_t, s.t, s.t + 1 if s.inverting else s.t - 1) for s in states]
        asked, source, target = torch.tensor(levels, device=self.empty_embedding.device).unbind(1)
        return asked, source, target

    def _guide(self, states: list[InversionState], noise: Tensor) -> Tensor:
        """Guided noise where the embedding was the null embedding; elsewhere it stays as predicted."""
        noise_cond = [e if s.noise_cond is None else s.noise_cond for s, e in zip(states, noise, strict=True)]
        return classifier_free_guidance(noise, torch.stack(noise_cond), self.settings.guidance_scale)

    def _targets(self, states: list[InversionState], stepped: Tensor) -> Tensor:
        return torch.stack([z if s.inverting else s.target for s, z in zip(states, stepped, strict=True)])

    def _gradients(self, loss: Tensor, noise: Tensor, embeddings: Tensor) -> Tensor:
        """Each row's gradient is that of its own loss: the sum over images of the mean within an image.

        Losses near 1e-5, each a mean over thousands of values, have gradients too small for half precision. A
        backward is linear in what is sent back: each row goes with a largest value of 1, and its scale follows after.
        """
        of_noise = torch.autograd.grad(loss, noise)[0]
        scale = of_noise.abs().amax(dim=(1, 2, 3)).clamp(min=torch.finfo(of_noise.dtype).tiny)
        of_embeddings = torch.autograd.grad(noise, embeddings, of_noise / scale.view(-1, 1, 1, 1))[0]
        return of_embeddings * scale.view(-1, 1, 1)

    # --- what follows from it --------------------------------------------------------------------

    def _settle(self, states: list[InversionState], evaluation: Evaluation) -> None:
        """Let each image go where the call leads it."""
        moving, retreating = [], []
        rows = zip(states, evaluation.noise, evaluation.stepped, strict=True)
        for i, (state, noise, stepped) in enumerate(rows):
            if state.inverting:
                state.append_pivot(stepped.clone())
                continue
            if not self.has_guided_step(state):
                state.noise_cond = noise.clone()
                continue
            look = Look(state.null_embedding, stepped.clone(), evaluation.values[i])
            match state.verdict(look.loss):
                case "fail":
                    state.error = f"the loss at t = {state.t} of {self.schedule.num_steps} is {look.loss}"
                case "accept":
                    state.accept(look)
                case "look again":
                    state.looks += 1
                case "move":
                    state.best = look
                    moving.append(i)
                case "backtrack":
                    retreating.append(state)
        if moving:
            self._adopt([states[i] for i in moving], self._moved(states, evaluation, moving))
        if retreating:
            self._adopt(retreating, torch.stack([s.backtrack() for s in retreating]))

    def _moved(self, states: list[InversionState], evaluation: Evaluation, rows: list[int]) -> Tensor:
        """Embeddings after a step of the solver, [rows, tokens, dim]."""
        assert evaluation.gradients is not None
        movers = [states[i] for i in rows]
        gradients, embeddings = _rows(evaluation.gradients, rows), _rows(evaluation.embeddings, rows)
        if self.settings.solver == "adam":
            for state, gradient in zip(movers, gradients, strict=True):
                state.moments = state.moments or Moments(torch.zeros_like(gradient), torch.zeros_like(gradient))
            moments = [s.moments for s in movers if s.moments is not None]
            return adam_step(embeddings, gradients, moments, [s.learning_rate for s in movers])
        steps, squares = polyak_step(gradients, _rows(evaluation.losses, rows), [s.square for s in movers])
        for state, step, square in zip(movers, steps, squares, strict=True):
            state.step, state.square = step.clone(), square.clone()
        return embeddings + steps

    def _adopt(self, states: list[InversionState], embeddings: Tensor) -> None:
        """Give each image its next candidate, in the form in which it would be stored."""
        previous = torch.stack([s.previous_embedding for s in states])
        for state, embedding in zip(states, round_embeddings(self.storage, embeddings, previous), strict=True):
            state.null_embedding = embedding.clone()
            state.steps_taken += 1
            state.looks += 1


def _rows(tensor: Tensor, rows: list[int]) -> Tensor:
    """Some rows of a tensor; indexing with a list would wait for the device."""
    return torch.stack([tensor[i] for i in rows])
