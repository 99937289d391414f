"""Inversion of one image by null-text optimization or by a method without it, one network evaluation after another.

Mokady et al., "Null-text Inversion for Editing Real Images using Guided Diffusion Models", 2022,
https://arxiv.org/abs/2211.09794, Algorithm 1. Names here and symbols there:

    trajectory[t]       z*_t      pivot: latents of DDIM inversion with guidance scale 1, t = 0 ... T
    latents             z_t       latents of guided sampling
    null_embedding      null_t    unconditional text embedding at t; null_T starts from the embedding of ""
    prompt_embedding    C         embedding of the prompt
    cond                          eps(z_t, C), or v(z_t, C) of a network that predicts v
    guidance_scale      w
    num_inner_steps     N

For t = T ... 1, starting at z_T = z*_T:

    minimise over null_t   || z*_{t-1} - step(z_t, guide(eps(z_t, null_t), eps(z_t, C)), t -> t-1) ||^2
    z_{t-1} = step(...) with the null_t found;   null_{t-1} starts from null_t

The other methods go down from the same pivot and optimise nothing:

    ddim               null_t = embedding of ""
    negative-prompt    null_t = C, so that the guided noise is eps(z_t, C)
    direct             null_t = embedding of "";   z_{t-1} = step(...) + (z*_{t-1} - step(...)), which is z*_{t-1}

`ddpm` has another pivot, which needs no network, and is finished as soon as it is admitted (`ddpm.py`).

Miyake et al., "Negative-prompt Inversion: Fast Image Inversion for Editing with Text-guided Diffusion Models", 2023,
https://arxiv.org/abs/2305.16807; Ju et al., "Direct Inversion: Boosting Diffusion-based Editing with 3 Lines of Code",
2023, https://arxiv.org/abs/2310.01506.
"""

from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from torch import Tensor

from nti_batch.diffusion.rounding import Storage, round_values
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.diffusion.solvers import Moments

Decision = Literal["append pivot", "keep cond", "fail", "accept", "evaluate again", "update", "backtrack"]
"""What an image does with the outcome of a network call."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A null embedding that has been evaluated."""

    null_embedding: Tensor
    latents: Tensor
    """z_{t-1} of the guided step with it."""

    loss: float
    """Mean squared distance of z_{t-1} to the pivot."""


@dataclass(slots=True, eq=False)
class TimestepState:
    """Progress of one image at one timestep t of the way down. A new one is made for each t."""

    null_embedding: Tensor
    """The embedding that is evaluated next."""

    accepted_first: bool = False
    """Whether the timestep before accepted its first candidate; this one then evaluates its first without gradient."""

    cond: Tensor | None = None
    """The prediction for the prompt, once it is known."""

    evaluations: int = 0
    """Candidates that were evaluated and not accepted."""

    updates: int = 0
    moments: Moments | None = None
    """Adam's moments, from the first update on."""

    step: Tensor | None = None
    """The last change that Polyak's solver made to the embedding."""

    best: Candidate | None = None
    """The candidate that was updated last; Polyak's solver never accepts a worse one."""


@dataclass(slots=True, eq=False)
class InversionState:
    """Progress of one image: up the pivot, then down again, one timestep after the other.

    Tensors have no batch dimension and stay on the network's device. An image ends when it is `finished`; then `error`
    names a loss that is not finite, or is empty.
    """

    settings: InversionSettings
    storage: Storage
    num_steps: int
    prompt_embedding: Tensor
    start_embedding: Tensor
    trajectory: list[Tensor]
    current: TimestepState = field(init=False)
    t: int = 0
    latents: Tensor | None = None
    """z_t; None on the way up."""

    square: Tensor | None = None
    """Running mean of the squared gradient that Polyak's solver keeps from timestep to timestep."""

    null_embeddings: list[Tensor] = field(default_factory=list)
    """Accepted embeddings, t = T first."""

    pivot: list[Tensor] = field(default_factory=list)
    """z*_{t-1} where `keeps_pivot`, t = T first, in the form in which they are stored."""

    losses: list[float] = field(default_factory=list)
    inner_steps: list[int] = field(default_factory=list)
    forwards: int = 0
    backwards: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        """Prepare the first timestep of the way down; with edit-friendly DDPM inversion, finish."""
        self.current = TimestepState(self.start_embedding)
        if self.settings.method == "ddpm":
            self.pivot = [round_values(self.storage, latents) for latents in self.trajectory[-2::-1]]
            self.latents = self.pivot[-1]
            self.null_embeddings = [self.start_embedding] * self.num_steps
            self.losses, self.inner_steps = [0.0] * self.num_steps, [0] * self.num_steps

    @property
    def inverting(self) -> bool:
        """Whether the pivot is still incomplete."""
        return len(self.trajectory) <= self.num_steps

    @property
    def finished(self) -> bool:
        """Whether every timestep is solved, or the image has failed."""
        return bool(self.error) or len(self.null_embeddings) == self.num_steps

    @property
    def progress(self) -> float:
        """Share of the steps up and down that are taken, from 0 to 1."""
        return (len(self.trajectory) - 1 + len(self.null_embeddings)) / (2 * self.num_steps)

    @property
    def solving(self) -> bool:
        """Whether the next evaluation is of the null embedding; otherwise it is of the prompt."""
        return self.current.cond is not None

    @property
    def has_guided_step(self) -> bool:
        """Whether the next evaluation completes the guided step down."""
        return not self.inverting and (self.solving or not self.settings.guided)

    @property
    def can_update(self) -> bool:
        """Whether another update is allowed at this timestep."""
        best = self.current.best
        # only the solver 'authors' updates a candidate below the threshold, and then no other one
        has_passed = best is not None and best.loss < self.threshold
        is_left = self.current.updates < self.settings.num_inner_steps and not has_passed
        return self.settings.method == "null-text" and is_left

    @property
    def needs_gradient(self) -> bool:
        """Whether the next evaluation prepares an update of the embedding."""
        probing = self.current.accepted_first and self.current.evaluations == 0
        return self.solving and self.can_update and not probing

    @property
    def network_t(self) -> int:
        """The level whose timestep the network gets: on the way up, the level above."""
        return self.t + 1 if self.inverting else self.t

    @property
    def next_t(self) -> int:
        """The level that the next step leads to."""
        return self.t + 1 if self.inverting else self.t - 1

    @property
    def current_latents(self) -> Tensor:
        """Input of the next evaluation: z*_t on the way up, z_t on the way down."""
        return self.trajectory[-1] if self.latents is None else self.latents

    @property
    def next_embedding(self) -> Tensor:
        """Embedding of the next evaluation."""
        return self.current.null_embedding if self.solving else self.prompt_embedding

    @property
    def previous_embedding(self) -> Tensor:
        """null_{t+1}, or the start."""
        return self.null_embeddings[-1] if self.null_embeddings else self.start_embedding

    @property
    def target(self) -> Tensor:
        """z*_{t-1}, the target of the next step down."""
        return self.trajectory[self.t - 1]

    @property
    def threshold(self) -> float:
        """The loss below which an embedding is accepted at this timestep."""
        return self.settings.threshold_at(self.t, self.num_steps)

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate at this timestep."""
        return self.settings.learning_rate_at(self.t, self.num_steps)

    def decide(self, loss: float) -> Decision:
        """Choose what to do after an evaluation with this loss, which matters only for a guided step."""
        if self.inverting:
            return "append pivot"
        if not self.has_guided_step:
            return "keep cond"
        if not isfinite(loss):
            return "fail"
        if not (self.solving and self.can_update):
            return "accept"
        if loss < self.threshold and not self.settings.updates_first:
            return "accept"
        if not self.needs_gradient:
            return "evaluate again"
        return "backtrack" if self._is_worse(loss) else "update"

    def _is_worse(self, loss: float) -> bool:
        best = self.current.best
        return self.settings.solver == "polyak" and best is not None and loss > best.loss

    def append_pivot(self, latents: Tensor) -> None:
        """Add z*_{t+1}; at the top, turn round: z_T = z*_T."""
        self.trajectory.append(latents)
        self.t += 1
        if not self.inverting:
            self.latents = latents

    def backtrack(self) -> Tensor:
        """Halve the last step of Polyak's solver, and return the embedding that it then leads to."""
        best, step = self.current.best, self.current.step
        assert best is not None and step is not None
        self.current.step = step / 2
        return best.null_embedding + self.current.step

    def accept(self, candidate: Candidate) -> None:
        """Keep null_t and its z_{t-1}, or a better candidate seen before, and go to the next timestep.

        With direct inversion z_{t-1} is the pivot's.
        """
        best = self.current.best
        if best is not None and self._is_worse(candidate.loss):
            candidate = best
        self.null_embeddings.append(candidate.null_embedding)
        self.losses.append(candidate.loss)
        self.inner_steps.append(self.current.updates)
        self.latents = candidate.latents
        if self.settings.method == "direct":
            self.latents = round_values(self.storage, self.target)
            self.pivot.append(self.latents)
        self.current = TimestepState(candidate.null_embedding, accepted_first=self.current.evaluations == 0)
        self.t -= 1
