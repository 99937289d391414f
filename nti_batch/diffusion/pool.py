"""Images at different timesteps share network calls.

A network call wants many images, and images want different numbers of calls: one meets its threshold at
once, another takes ten updates. In lock-step all would wait for the slowest at every timestep. Here each image
goes its own way, and every tick takes the images that need the same kind of call and makes that one call.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from math import isfinite
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nti_batch.diffusion.ddim import ddim_step
from nti_batch.diffusion.guidance import NoisePredictor, classifier_free_guidance
from nti_batch.diffusion.null_text import Moments, NullTextSettings, NullTextState, adam_step
from nti_batch.diffusion.schedule import DDIMSchedule

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


class InversionPool(Generic[K]):
    """Null-text inversion of the images in flight on one device.

    There are two kinds of call, with and without gradient. With 2 slots - 1 images in flight, one kind is always
    wanted by at least `slots` of them: so every call is full while the pool is (`capacity`), and only the tail
    of a job runs with smaller batches.
    """

    def __init__(
        self,
        predict_noise: NoisePredictor,
        schedule: DDIMSchedule,
        settings: NullTextSettings,
        empty_embedding: Tensor,
        slots: int,
    ) -> None:
        """Start empty.

        Args:
            predict_noise: The frozen network; its parameters must not require gradients.
            schedule: Noise levels, on the network's device.
            settings: Of the optimization.
            empty_embedding: Embedding of the empty prompt, [tokens, dim]: where null_T starts.
            slots: Images in one network call, at least 1.
        """
        if slots < 1:
            raise ValueError(f"slots is {slots}, allowed: at least 1")
        self.predict_noise = predict_noise
        self.schedule = schedule
        self.settings = settings
        self.empty_embedding = empty_embedding
        self.slots = slots
        self.work = Work()
        self._states: dict[K, NullTextState] = {}

    def __len__(self) -> int:
        """Images in flight."""
        return len(self._states)

    @property
    def capacity(self) -> int:
        """Images in flight that keep every call full."""
        return 2 * self.slots - 1

    def admit(self, key: K, latents: Tensor, prompt_embedding: Tensor) -> None:
        """Take in an image.

        Args:
            key: What `tick` will call it; no other image in flight may have it.
            latents: z*_0, [channels, height, width] float32; one shape for all images of a pool.
            prompt_embedding: C, [tokens, dim] float32.
        """
        assert key not in self._states, key
        self._states[key] = NullTextState(
            settings=self.settings,
            num_steps=self.schedule.num_steps,
            prompt_embedding=prompt_embedding,
            null_embedding=self.empty_embedding,
            trajectory=[latents],
        )

    def tick(self) -> list[tuple[K, NullTextState]]:
        """Make one network call; return the images that it finished.

        Raises:
            RuntimeError: Under `torch.inference_mode()`, where no gradient can be had.
        """
        states = self._next_call()
        if not states:
            return []
        embeddings = torch.stack([s.null_embedding if s.solving else s.prompt_embedding for s in states])
        with torch.set_grad_enabled(states[0].wants_gradient):
            noise = self._predict(states, embeddings.requires_grad_(states[0].wants_gradient))
            solving = [i for i, s in enumerate(states) if s.solving]
            if solving:
                self._take_noise_of_null([states[i] for i in solving], noise[solving], embeddings)
        others = [i for i, s in enumerate(states) if i not in solving]
        if others:
            self._take_noise_of_prompt([states[i] for i in others], noise[others])
        finished = [(key, state) for key, state in self._states.items() if state.finished]
        for key, _ in finished:
            del self._states[key]
        return finished

    def _next_call(self) -> list[NullTextState]:
        """The longest-waiting images of the kind of call that more images want, at most `slots`."""
        with_gradient = [s for s in self._states.values() if s.wants_gradient]
        without = [s for s in self._states.values() if not s.wants_gradient]
        return max(without, with_gradient, key=len)[: self.slots]

    def _predict(self, states: list[NullTextState], embeddings: Tensor) -> Tensor:
        """The one network call of a tick."""
        self.work.calls += 1
        self.work.full_calls += len(states) == self.slots
        self.work.forwards += len(states)
        for state in states:
            state.forwards += 1
        latents = torch.stack([s.current_latents for s in states])
        timesteps = self.schedule.network_timesteps[self._levels([s.network_t for s in states])]
        return self.predict_noise(latents, timesteps, embeddings)

    def _levels(self, levels: list[int]) -> Tensor:
        return torch.tensor(levels, device=self.empty_embedding.device)

    def _step(self, states: list[NullTextState], noise: Tensor, targets: list[int]) -> Tensor:
        latents = torch.stack([s.current_latents for s in states])
        return ddim_step(self.schedule, latents, noise, self._levels([s.t for s in states]), self._levels(targets))

    def _take_noise_of_prompt(self, states: list[NullTextState], noise: Tensor) -> None:
        """One step up the pivot, or e_c for the step down that comes next."""
        stepped = self._step(states, noise, [s.t + 1 if s.inverting else s.t - 1 for s in states])
        for state, e_c, latents in zip(states, noise, stepped, strict=True):
            if state.inverting:
                state.climb(latents.clone())
            elif self.settings.guidance_scale == 1:
                loss = (state.target - latents).square().mean().item()
                state.accept(latents.clone(), loss)
            else:
                state.noise_cond = e_c.clone()

    def _take_noise_of_null(self, states: list[NullTextState], noise: Tensor, embeddings: Tensor) -> None:
        """Accept the embeddings whose guided step lands near the pivot; move the others."""
        noise_cond = torch.stack([s.noise_cond for s in states if s.noise_cond is not None])
        guided = classifier_free_guidance(noise, noise_cond, self.settings.guidance_scale)
        stepped = self._step(states, guided, [s.t - 1 for s in states])
        losses = (torch.stack([s.target for s in states]) - stepped).square().mean(dim=(1, 2, 3))
        values: list[float] = losses.tolist()
        moving = []
        for i, (state, loss) in enumerate(zip(states, values, strict=True)):
            if not isfinite(loss):
                state.error = f"the loss at t = {state.t} of {self.schedule.num_steps} is {loss}"
            elif loss < self.settings.threshold_at(state.t, self.schedule.num_steps) or not state.wants_gradient:
                state.accept(stepped[i].detach().clone(), loss)
            else:
                moving.append(i)
        if moving:
            gradients = self._gradients(states, losses[moving].sum(), noise, embeddings)
            self._move([states[i] for i in moving], gradients[moving])

    def _gradients(self, states: list[NullTextState], loss: Tensor, noise: Tensor, embeddings: Tensor) -> Tensor:
        """Each row's gradient is that of its own loss: the sum over images of the mean within an image.

        Losses near 1e-5, each a mean over thousands of values, have gradients too small for half precision. A
        backward is linear in what is sent back: each row goes with a largest value of 1, and its scale follows after.
        """
        self.work.backwards += len(states)
        for state in states:
            state.backwards += 1
        of_noise = torch.autograd.grad(loss, noise)[0]
        scale = of_noise.abs().amax(dim=(1, 2, 3)).clamp(min=torch.finfo(of_noise.dtype).tiny).view(-1, 1, 1, 1)
        return torch.autograd.grad(noise, embeddings, of_noise / scale)[0] * scale.view(-1, 1, 1)

    def _move(self, states: list[NullTextState], gradients: Tensor) -> None:
        embeddings = torch.stack([s.null_embedding for s in states])
        rates = [self.settings.learning_rate_at(s.t, self.schedule.num_steps) for s in states]
        for state, gradient in zip(states, gradients, strict=True):
            state.moments = state.moments or Moments(torch.zeros_like(gradient), torch.zeros_like(gradient))
        moments = [s.moments for s in states if s.moments is not None]
        moved = adam_step(embeddings, gradients, moments, rates)
        for state, embedding in zip(states, moved, strict=True):
            state.null_embedding = embedding.clone()
