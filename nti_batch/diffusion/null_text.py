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

from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import Any, Literal

from torch import Tensor

from nti_batch.diffusion.host import download
from nti_batch.diffusion.settings import InversionSettings

Decision = Literal[
    "append pivot", "keep cond", "fail", "accept", "accept best", "evaluate again", "update", "backtrack"
]
"""What an image does with the outcome of a network call."""


@dataclass(slots=True)
class TimestepState:
    """Progress of one image at one timestep t of the way down. A new one is made for each t."""

    accepted_first: bool = False
    """Whether the timestep before accepted its first candidate; this one then evaluates its first without gradient."""

    has_cond: bool = False
    """Whether the prediction for the prompt is known."""

    evaluations: int = 0
    """Candidates that were evaluated and not accepted."""

    updates: int = 0
    best_loss: float | None = None
    """Loss of the candidate that was updated last; Polyak's solver never accepts a worse one."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class InvertedImage:
    """A finished image. Tensors have no batch dimension and are on the network's device."""

    error: str
    """A loss that is not finite; empty if the inversion has succeeded. Tensors of a failed image are meaningless."""

    prompt_embedding: Tensor
    start_embedding: Tensor
    trajectory: Tensor
    """z*_0 ... z*_T, [T + 1, channels, height, width]."""

    null_embeddings: Tensor
    """Accepted embeddings, [T, tokens, dim], t = T first."""

    pivot: Tensor | None
    """z*_{T-1} ... z*_0 where `keeps_pivot`, in the form in which they are stored, [T, channels, height, width]."""

    latents: Tensor
    """z_0 as guided sampling reaches it; where the pivot is kept, its last point."""

    losses: list[float]
    inner_steps: list[int]
    forwards: int
    backwards: int

    def on_host(self) -> "InvertedImage":
        """Start a copy of the tensors to the host; they have arrived once a `HostCopy` that starts later has."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **values | {name: download(t) for name, t in values.items() if isinstance(t, Tensor)})


@dataclass(slots=True, eq=False)
class InversionState:
    """Progress of one image: up the pivot, then down again, one timestep after the other.

    It holds the host's numbers; the tensors are in the row `row` of `PoolTensors`. An image ends when it is `finished`;
    then `error` names a loss that is not finite, or is empty.
    """

    settings: InversionSettings
    num_steps: int
    row: int
    inverting: bool = True
    """Whether the pivot is still incomplete."""

    t: int = 0
    current: TimestepState = field(default_factory=TimestepState)
    has_updated: bool = False
    """Whether an embedding was updated at any timestep: Polyak's solver keeps its running mean."""

    in_call: bool = False
    """Whether a network call with the image has not been read yet."""

    losses: list[float] = field(default_factory=list)
    inner_steps: list[int] = field(default_factory=list)
    forwards: int = 0
    backwards: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        """Finish with edit-friendly DDPM inversion, which takes no step."""
        if self.settings.method == "ddpm":
            self.losses, self.inner_steps = [0.0] * self.num_steps, [0] * self.num_steps

    @property
    def finished(self) -> bool:
        """Whether every timestep is solved, or the image has failed."""
        return bool(self.error) or len(self.losses) == self.num_steps

    @property
    def progress(self) -> float:
        """Share of the steps up and down that are taken, from 0 to 1."""
        up = self.t if self.inverting else self.num_steps
        return (up + len(self.losses)) / (2 * self.num_steps)

    @property
    def solving(self) -> bool:
        """Whether the next evaluation is of the null embedding; otherwise it is of the prompt."""
        return self.current.has_cond

    @property
    def has_guided_step(self) -> bool:
        """Whether the next evaluation completes the guided step down."""
        return not self.inverting and (self.solving or not self.settings.guided)

    @property
    def can_update(self) -> bool:
        """Whether another update is allowed at this timestep."""
        best = self.current.best_loss
        # only the solver 'authors' updates a candidate below the threshold, and then no other one
        has_passed = best is not None and best < self.threshold
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
        is_worse = self._is_worse(loss)
        if not (self.solving and self.can_update) or (loss < self.threshold and not self.settings.updates_first):
            return "accept best" if is_worse else "accept"
        if not self.needs_gradient:
            return "evaluate again"
        return "backtrack" if is_worse else "update"

    def _is_worse(self, loss: float) -> bool:
        best = self.current.best_loss
        return self.settings.solver == "polyak" and best is not None and loss > best

    def apply(self, decision: Decision, loss: float) -> None:
        """Go on as decided after an evaluation with this loss."""
        match decision:
            case "append pivot":
                self.t += 1
                self.inverting = self.t < self.num_steps
            case "keep cond":
                self.current.has_cond = True
            case "fail":
                self.error = f"the loss at t = {self.t} of {self.num_steps} is {loss}"
            case "accept":
                self._accept(loss)
            case "accept best":
                assert self.current.best_loss is not None
                self._accept(self.current.best_loss)
            case "evaluate again":
                self.current.evaluations += 1
            case "update":
                self.current.best_loss, self.has_updated = loss, True
                self._count_update()
            case "backtrack":
                self._count_update()

    def _accept(self, loss: float) -> None:
        """Go to the next timestep."""
        self.losses.append(loss)
        self.inner_steps.append(self.current.updates)
        self.current = TimestepState(accepted_first=self.current.evaluations == 0)
        self.t -= 1

    def _count_update(self) -> None:
        self.current.updates += 1
        self.current.evaluations += 1
