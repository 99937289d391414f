"""Inversion of one image by null-text optimization or without, as a state moved on one network evaluation at a time.

Mokady et al., "Null-text Inversion for Editing Real Images using Guided Diffusion Models", 2022,
https://arxiv.org/abs/2211.09794, Algorithm 1. Names here and symbols there:

    trajectory[t]       z*_t      pivot: latents of DDIM inversion with guidance scale 1, t = 0 ... T
    latents             z_t       latents of guided sampling
    null_embedding      null_t    unconditional text embedding at t; starts as the one of ""
    prompt_embedding    C         embedding of the prompt
    noise_cond          e_c       eps(z_t, C)
    guidance_scale      w
    num_inner_steps     N

For t = T ... 1, starting at z_T = z*_T:

    minimise over null_t   || z*_{t-1} - step(z_t, guide(eps(z_t, null_t), eps(z_t, C)), t -> t-1) ||^2
    z_{t-1} = step(...) with the null_t found;   null_{t-1} starts from null_t

The other methods go down from the same pivot and optimise nothing:

    ddim               null_t = embedding of ""
    negative-prompt    null_t = C, so that the guided noise is eps(z_t, C)
    direct             null_t = embedding of "";   z_{t-1} = step(...) + (z*_{t-1} - step(...)), which is z*_{t-1}

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

Verdict = Literal["fail", "accept", "look again", "move", "backtrack"]


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One evaluation of a null embedding: where the guided step with it lands, and how far that is from the pivot."""

    null_embedding: Tensor
    latents: Tensor
    """z_{t-1}."""

    loss: float


@dataclass(slots=True, eq=False)
class InversionState:
    """One image on its way: first up the pivot, then down again, one timestep solved after the other.

    Tensors have no batch dimension and stay on the network's device. `finished` tells the end; `error` a
    loss that is no number.
    """

    settings: InversionSettings
    storage: Storage
    num_steps: int
    prompt_embedding: Tensor
    start_embedding: Tensor
    trajectory: list[Tensor]
    null_embedding: Tensor = field(init=False)
    """The candidate that the next look is at."""

    t: int = 0
    latents: Tensor | None = None
    noise_cond: Tensor | None = None
    looks: int = 0
    """Evaluations of null embeddings at this timestep that were not accepted."""

    steps_taken: int = 0
    """Updates at this timestep."""

    accepted_first: bool = False
    """Whether the last timestep was accepted at first sight, so that this one may be, too."""

    moments: Moments | None = None
    """Adam's, new at each timestep."""

    square: Tensor | None = None
    """Polyak's v."""

    step: Tensor | None = None
    """Polyak's last change of the embedding."""

    best: Look | None = None
    """The look that was last moved on from; Polyak's never returns to a worse one."""

    null_embeddings: list[Tensor] = field(default_factory=list)
    """Accepted ones, t = T first."""

    pivot: list[Tensor] = field(default_factory=list)
    """z*_{t-1} that direct inversion went to, t = T first, in the form in which they are stored."""

    losses: list[float] = field(default_factory=list)
    inner_steps: list[int] = field(default_factory=list)
    forwards: int = 0
    backwards: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        """Begin at the start."""
        self.null_embedding = self.start_embedding

    @property
    def inverting(self) -> bool:
        """Whether the pivot is still incomplete."""
        return len(self.trajectory) <= self.num_steps

    @property
    def finished(self) -> bool:
        """Whether every timestep is solved, or the image has failed."""
        return bool(self.error) or len(self.null_embeddings) == self.num_steps

    @property
    def solving(self) -> bool:
        """Whether the next evaluation is of the null embedding; otherwise it is of the prompt."""
        return self.noise_cond is not None

    @property
    def can_update(self) -> bool:
        """Whether another update is allowed at this timestep."""
        return self.settings.method == "null-text" and self.steps_taken < self.settings.num_inner_steps

    @property
    def needs_gradient(self) -> bool:
        """Whether the next evaluation should be ready for an update of the embedding."""
        return self.solving and self.can_update and not (self.accepted_first and self.looks == 0)

    @property
    def network_t(self) -> int:
        """The level whose timestep the network is asked for: in inversion the one that is stepped to."""
        return self.t + 1 if self.inverting else self.t

    @property
    def current_latents(self) -> Tensor:
        """What the network sees next: z*_t on the way up, z_t on the way down."""
        return self.trajectory[-1] if self.latents is None else self.latents

    @property
    def target(self) -> Tensor:
        """z*_{t-1}, where the next step down should land."""
        return self.trajectory[self.t - 1]

    @property
    def threshold(self) -> float:
        """The loss below which an embedding is accepted at this timestep."""
        return self.settings.threshold_at(self.t, self.num_steps)

    @property
    def learning_rate(self) -> float:
        """Adam's at this timestep."""
        return self.settings.learning_rate_at(self.t, self.num_steps)

    def append_pivot(self, latents: Tensor) -> None:
        """Add z*_{t+1}; at the top, turn round: z_T = z*_T."""
        self.trajectory.append(latents)
        self.t += 1
        if not self.inverting:
            self.latents = latents

    @property
    def previous_embedding(self) -> Tensor:
        """null_{t+1}, or the start."""
        return self.null_embeddings[-1] if self.null_embeddings else self.start_embedding

    def verdict(self, loss: float) -> Verdict:
        """What to do after a look with this loss."""
        if not isfinite(loss):
            return "fail"
        if loss < self.threshold or not (self.solving and self.can_update):
            return "accept"
        if not self.needs_gradient:
            return "look again"
        return "backtrack" if self._is_worse(loss) else "move"

    def _is_worse(self, loss: float) -> bool:
        return self.settings.solver == "polyak" and self.best is not None and loss > self.best.loss

    def backtrack(self) -> Tensor:
        """Half of Polyak's last step, from where it was made."""
        assert self.best is not None and self.step is not None
        self.step = self.step / 2
        return self.best.null_embedding + self.step

    def accept(self, look: Look) -> None:
        """Keep null_t and the z_{t-1} that it gave, or a better one seen before, and go to the next timestep.

        With direct inversion z_{t-1} is the pivot's.
        """
        if self.best is not None and self._is_worse(look.loss):
            look = self.best
        self.null_embedding = look.null_embedding
        self.null_embeddings.append(look.null_embedding)
        self.losses.append(look.loss)
        self.inner_steps.append(self.steps_taken)
        self.accepted_first = self.looks == 0
        self.latents, self.noise_cond, self.moments, self.step, self.best = look.latents, None, None, None, None
        if self.settings.method == "direct":
            self.latents = round_values(self.storage, self.target)
            self.pivot.append(self.latents)
        self.looks = self.steps_taken = 0
        self.t -= 1
