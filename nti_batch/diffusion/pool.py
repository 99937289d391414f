"""Inverts images at different timesteps by shared network calls.

A network call is efficient with many images, and images need different numbers of calls: one meets its threshold at
once, another takes ten updates. In lock-step, all would wait for the slowest one at every timestep. Here each image
advances by itself: every call takes the images that need the same kind of evaluation, with or without gradient.
"""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nti_batch.diffusion.call import Call
from nti_batch.diffusion.clock import DeviceClock
from nti_batch.diffusion.ddim import ddim_step
from nti_batch.diffusion.ddpm import noise_trajectory
from nti_batch.diffusion.guidance import Predictor, classifier_free_guidance
from nti_batch.diffusion.host import HostCopy, to_device
from nti_batch.diffusion.null_text import InversionState, InvertedImage
from nti_batch.diffusion.pool_tensors import PoolTensors
from nti_batch.diffusion.rounding import Storage, round_values
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings

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


class InversionPool(Generic[K]):
    """Inversion of the images in flight on one device.

    There are two kinds of call, with and without gradient. With 2 `batch_size` - 1 images in flight, at least
    `batch_size` of them need one kind. So every call is full while the pool is (`capacity`), and only the tail of a
    job runs with smaller batches.

    On a GPU the host is one call ahead: it reads the losses of a call, and decides, while the device works on the next
    call, of `batch_size` other images. Two calls with gradient never overlap, since each keeps much memory.
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
        self.most_calls = 2 if empty_embedding.is_cuda else 1
        """Calls on their way at the same time."""

        self.work = Work()
        self.clock = DeviceClock(empty_embedding.device)
        """Time of the network's passes, forward and backward."""

        self._states: dict[K, InversionState] = {}
        self._calls: deque[Call] = deque()
        self._tensors: PoolTensors | None = None
        self._free: list[int] = []
        """Rows without an image."""

    def __len__(self) -> int:
        """Number of images in flight."""
        return len(self._states)

    @property
    def capacity(self) -> int:
        """Number of images in flight that keeps every call full."""
        return (1 + self.most_calls) * self.batch_size - 1

    @property
    def has_full_call(self) -> bool:
        """Whether a call of `batch_size` images can start."""
        return len(self._next_call()) == self.batch_size

    def progress(self, key: K) -> float:
        """Share of the steps of an image in flight that are taken, from 0 to 1."""
        return self._states[key].progress

    def run(self, images: Iterable[tuple[K, Tensor, Tensor, int]]) -> Iterator[tuple[K, InvertedImage]]:
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
        if self._tensors is None:
            self._free = list(range(self.capacity))
            self._tensors = PoolTensors(
                self.settings, self.storage, self.schedule.num_steps, self.capacity, latents, prompt_embedding
            )
        trajectory = latents[None]
        if self.settings.method == "ddpm":
            trajectory = torch.stack(noise_trajectory(self.schedule, latents, seed))
        state = InversionState(self.settings, self.schedule.num_steps, row=self._free.pop())
        self._tensors.admit(state.row, trajectory, prompt_embedding, round_values(self.storage, start))
        self._states[key] = state

    def make_room(self, stop_requested: Callable[[], bool] = lambda: False) -> Iterator[tuple[K, InvertedImage]]:
        """Advance until another image can be admitted; yield the images that finish.

        Args:
            stop_requested: Called before each network call; once it returns true, no further call is made.
        """
        while len(self) >= self.capacity and not stop_requested():
            yield from self.advance()

    def finish(self, stop_requested: Callable[[], bool] = lambda: False) -> Iterator[tuple[K, InvertedImage]]:
        """Advance until no image is in flight; yield the images that finish. `stop_requested` as in `make_room`."""
        while len(self) and not stop_requested():
            yield from self.advance()

    def advance(self) -> list[tuple[K, InvertedImage]]:
        """Start a network call if there is one, and complete the oldest call; return the finished images.

        A call that does not fit the device's memory changes no image. From then on only one call is on its way; if that
        does not help, `batch_size` is halved.

        Raises:
            RuntimeError: Under `torch.inference_mode()`, in which torch computes no gradient.
            torch.OutOfMemoryError: If a call for one image does not fit.
        """
        states = self._next_call()
        try:
            if states:
                self._calls.append(self._start(states))
            if self._calls and (not states or len(self._calls) == self.most_calls):
                states = self._calls[0].states
                self._complete(self._calls[0])
                self._calls.popleft()
        except torch.OutOfMemoryError:
            is_alone = all(call.states is states for call in self._calls)
            if is_alone and len(states) == 1:
                raise
            self._shrink(len(states), is_alone)
        return [self._leave(key, state) for key, state in list(self._states.items()) if state.finished]

    def make_space(self) -> bool:
        """Drop the calls on their way, and have one at a time from then on; return whether there were any.

        Their images will be called again.
        """
        has_calls = bool(self._calls)
        if has_calls:
            self._shrink(0, is_alone=False)
        return has_calls

    def _next_call(self) -> list[InversionState]:
        """The longest-waiting images of the kind of call that more images need, at most `batch_size`.

        None beside a call with gradient that needs one, too, and none beside any call that would not be full.
        """
        waiting = [s for s in self._states.values() if not (s.finished or s.in_call)]
        with_gradient, without = ([s for s in waiting if s.needs_gradient is kind] for kind in (True, False))
        if any(call.needs_gradient for call in self._calls):
            with_gradient = []
        chosen = max(without, with_gradient, key=len)[: self.batch_size]
        return chosen if len(chosen) == self.batch_size or not self._calls else []

    def _shrink(self, images: int, is_alone: bool) -> None:
        """Take less memory, and drop the calls on their way, whose images will be called again."""
        self._calls.clear()
        for state in self._states.values():
            state.in_call = False
        if is_alone:
            self.batch_size = images // 2
            logger.warning(
                "a call with %d images does not fit the device's memory: continuing with %d", images, self.batch_size
            )
        else:
            self.most_calls = 1
            logger.warning("two calls do not fit the device's memory: continuing with one at a time")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _leave(self, key: K, state: InversionState) -> tuple[K, InvertedImage]:
        """Take a finished image out of its row."""
        del self._states[key]
        self._free.append(state.row)
        return key, self._tensors_in_use.inverted(state)

    @property
    def _tensors_in_use(self) -> PoolTensors:
        assert self._tensors is not None
        return self._tensors

    # --- one call --------------------------------------------------------------------------------

    def _start(self, states: list[InversionState]) -> Call:
        """Start a network call, take the step and compare it with the pivot; nothing waits for the device."""
        tensors, needs_gradient = self._tensors_in_use, states[0].needs_gradient
        numbers = [(s.row, s.network_t, s.t, s.next_t, s.solving) for s in states]
        rows, asked, t, next_t, solving = to_device(numbers, tensors.latents.device, torch.int64).unbind(1)
        embeddings, latents = tensors.candidates[rows].requires_grad_(needs_gradient), tensors.latents[rows]
        with torch.set_grad_enabled(needs_gradient):
            with self.clock.running():
                predictions = self.predict(latents, self.schedule.network_timesteps[asked], embeddings)
            # where the embedding was the prompt's, the prediction stays as it is
            cond = torch.where(solving.bool().view(-1, 1, 1, 1), tensors.cond[rows], predictions)
            guided = classifier_free_guidance(predictions, cond, self.settings.guidance_scale)
            stepped = ddim_step(self.schedule, latents, guided, t, next_t)
            losses = (tensors.trajectory[rows, next_t] - stepped).square().mean(dim=(1, 2, 3))
        values = self.to_host(losses.detach()) if any(s.has_guided_step for s in states) else None
        for state in states:
            state.in_call = True
        return Call(states, needs_gradient, rows, t, next_t, embeddings, predictions, stepped, losses, values)

    def to_host(self, values: Tensor) -> HostCopy:
        """Start a copy from the device to the host."""
        return HostCopy(values)

    def read_losses(self, call: Call) -> list[float]:
        """Losses of a call, once the device has computed them; zeros if no decision depends on them."""
        return call.values.tolist() if call.values else [0.0] * len(call.states)

    def _complete(self, call: Call) -> None:
        """Read the losses, decide what each image does, and do it."""
        losses = self.read_losses(call)
        decisions = [state.decide(loss) for state, loss in zip(call.states, losses, strict=True)]
        has_updates, gradients = "update" in decisions, None
        if has_updates:
            with self.clock.running():
                gradients = call.gradients([d == "update" for d in decisions])
        self._tensors_in_use.write(call, decisions, gradients)
        self._count(call, has_updates)
        for state, decision, loss in zip(call.states, decisions, losses, strict=True):
            state.in_call = False
            state.apply(decision, loss)

    def _count(self, call: Call, has_gradients: bool) -> None:
        images = len(call.states)
        self.work.calls += 1
        self.work.full_calls += images == self.batch_size
        self.work.forwards += images
        self.work.backwards += images * has_gradients
        for state in call.states:
            state.forwards += 1
            state.backwards += has_gradients
