"""Null-text optimization of one image, as a state that is moved on one network evaluation at a time.

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
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Solver = Literal["adam"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NullTextSettings:
    """Settings of null-text optimization; the defaults are those of the authors' code."""

    guidance_scale: float = 7.5
    """Classifier-free guidance scale w; 1 is no guidance, and then nothing is optimized."""

    num_inner_steps: int = 10
    """Most updates of the embedding at one timestep, N."""

    solver: Solver = "adam"
    """The rule that moves an embedding; Adam starts anew at each timestep."""

    learning_rate: float = 1e-2
    """Adam's learning rate at t = T. It falls linearly to half at t = 0."""

    early_stop_epsilon: float = 1e-5
    """An embedding is accepted once its loss is below this; mean squared error over one latent."""

    early_stop_growth: float = 2e-5
    """What the threshold grows by from one timestep to the next."""

    def __post_init__(self) -> None:
        """Raise one ValueError that lists every setting out of range, with its limits."""
        rules = {
            "guidance_scale": (self.guidance_scale >= 1, "at least 1"),
            "num_inner_steps": (self.num_inner_steps >= 1, "at least 1"),
            "solver": (self.solver == "adam", "'adam'"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "early_stop_epsilon": (self.early_stop_epsilon >= 0, "at least 0"),
            "early_stop_growth": (self.early_stop_growth >= 0, "at least 0"),
        }
        wrong = [f"{name} is {getattr(self, name)}, allowed: {limit}" for name, (ok, limit) in rules.items() if not ok]
        if wrong:
            raise ValueError("; ".join(wrong))

    def learning_rate_at(self, t: int, num_steps: int) -> float:
        """The authors' 0.01 (1 - i / 100) at i = T - t for their T = 50; for any T it ends at half."""
        return self.learning_rate * (1 - (num_steps - t) / (2 * num_steps))

    def threshold_at(self, t: int, num_steps: int) -> float:
        """The authors' 1e-5 + 2e-5 i at i = T - t."""
        return self.early_stop_epsilon + self.early_stop_growth * (num_steps - t)


@dataclass(slots=True, eq=False)
class Moments:
    """Adam's running means of one image's gradient and of its square, at one timestep."""

    mean: Tensor
    square: Tensor
    steps: int = 0


def adam_step(embeddings: Tensor, gradients: Tensor, moments: list[Moments], learning_rates: list[float]) -> Tensor:
    """Move each image's embedding by Adam with its own moments, step count and rate.

        m <- 0.9 m + 0.1 g;   v <- 0.999 v + 0.001 g^2
        null <- null - lr * (m / (1 - 0.9^k)) / (sqrt(v / (1 - 0.999^k)) + 1e-8)

    Kingma and Ba, "Adam", 2015, https://arxiv.org/abs/1412.6980, Algorithm 1; `torch.optim.Adam` has one step
    count for all rows, and here each image is at its own.

    Args:
        embeddings: null_t, [batch, tokens, dim].
        gradients: In the same shape.
        moments: One for each image; updated in place.
        learning_rates: One for each image.
    """
    for gradient, m in zip(gradients, moments, strict=True):
        m.steps += 1
        m.mean = torch.lerp(m.mean, gradient, 0.1)
        m.square = torch.lerp(m.square, gradient.square(), 0.001)

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=embeddings.dtype, device=embeddings.device).view(-1, 1, 1)

    mean = torch.stack([m.mean for m in moments]) / column([1 - 0.9**m.steps for m in moments])
    square = torch.stack([m.square for m in moments]) / column([1 - 0.999**m.steps for m in moments])
    return embeddings - column(learning_rates) * mean / (square.sqrt() + 1e-8)


@dataclass(slots=True, eq=False)
class NullTextState:
    """One image on its way: first up the pivot, then down again, one timestep solved after the other.

    Tensors have no batch dimension and stay on the network's device. `finished` tells the end; `error` a
    loss that is no number.
    """

    settings: NullTextSettings
    num_steps: int
    prompt_embedding: Tensor
    null_embedding: Tensor
    trajectory: list[Tensor]
    t: int = 0
    latents: Tensor | None = None
    noise_cond: Tensor | None = None
    moments: Moments | None = None
    null_embeddings: list[Tensor] = field(default_factory=list)
    """Accepted ones, t = T first."""

    losses: list[float] = field(default_factory=list)
    inner_steps: list[int] = field(default_factory=list)
    forwards: int = 0
    backwards: int = 0
    error: str = ""

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
    def wants_gradient(self) -> bool:
        """Whether the next evaluation may be followed by an update of the embedding."""
        return self.solving and self.steps_taken < self.settings.num_inner_steps

    @property
    def steps_taken(self) -> int:
        """Updates at this timestep so far."""
        return self.moments.steps if self.moments else 0

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

    def climb(self, latents: Tensor) -> None:
        """Add z*_{t+1}; at the top, turn round: z_T = z*_T."""
        self.trajectory.append(latents)
        self.t += 1
        if not self.inverting:
            self.latents = latents

    def accept(self, latents: Tensor, loss: float) -> None:
        """Keep null_t, take z_{t-1} that it gave, and go to the next timestep with Adam started anew."""
        self.null_embeddings.append(self.null_embedding)
        self.losses.append(loss)
        self.inner_steps.append(self.steps_taken)
        self.latents, self.noise_cond, self.moments = latents, None, None
        self.t -= 1
