"""Settings of the inversion methods."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Method = Literal["null-text", "ddim", "negative-prompt", "direct", "ddpm"]
Solver = Literal["adam", "authors", "polyak"]
NullInit = Literal["empty", "prompt"]

MAX_SEED = (1 << 63) - 1

AUTHORS_MAX_STEPS = 100
"""Number of steps at which the learning rate of the authors' code ends, 0.01 (1 - i / 100) at step i."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionSettings:
    """Settings of the way down from the pivot; the numbers are those of the authors' code.

    All but `method` and `guidance_scale` belong to one method and do not affect the others: `noise_seed` to 'ddpm', the
    rest to 'null-text'.
    """

    method: Method = "null-text"
    """The way in which guided sampling stays near the pivot.

    By optimized null embeddings ('null-text'); not at all ('ddim'); by the prompt as its own null embedding
    ('negative-prompt'); or by adding the difference to the pivot after each step ('direct'). Edit-friendly DDPM
    inversion ('ddpm') has a pivot of independent noise, and adds the difference to the steps of the edits, too.
    """

    guidance_scale: float = 7.5
    """Classifier-free guidance scale w; 1 is no guidance, and then nothing is optimized."""

    num_inner_steps: int = 10
    """Largest number of updates of the embedding at one timestep, N."""

    solver: Solver = "adam"
    """The rule that updates an embedding.

    'adam' compares the loss with the threshold, then updates by Adam; 'authors' updates first, as the authors' code
    does, and takes at most 100 steps; 'polyak' is the preconditioned Polyak step.
    """

    null_init: NullInit = "empty"
    """Initial value of null_T: the embedding of "", as in the authors' code, or the prompt's own.

    From the prompt, most timesteps accept their first candidate; Miyake et al., "Negative-prompt Inversion", 2023,
    https://arxiv.org/abs/2305.16807, use the prompt without an update.
    """

    learning_rate: float = 1e-2
    """Adam's learning rate at t = T. It falls linearly: to half at t = 0, or with 'authors' by 1 % a step."""

    early_stop_epsilon: float = 1e-5
    """An embedding is accepted once its loss is below this; mean squared error over one latent."""

    early_stop_growth: float = 2e-5
    """Growth of the threshold from one timestep to the next."""

    noise_seed: int = 0
    """Seed of the noise of 'ddpm', which also depends on the image."""

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ValueError: If settings are out of range. It lists each of them with its limits.
        """
        rules = {
            "method": (self.method in get_args(Method), " or ".join(map(repr, get_args(Method)))),
            "guidance_scale": (self.guidance_scale >= 1, "at least 1"),
            "num_inner_steps": (self.num_inner_steps >= 1, "at least 1"),
            "solver": (self.solver in get_args(Solver), " or ".join(map(repr, get_args(Solver)))),
            "null_init": (self.null_init in get_args(NullInit), " or ".join(map(repr, get_args(NullInit)))),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "early_stop_epsilon": (self.early_stop_epsilon >= 0, "at least 0"),
            "early_stop_growth": (self.early_stop_growth >= 0, "at least 0"),
            "noise_seed": (0 <= self.noise_seed <= MAX_SEED, f"0 to {MAX_SEED}"),
        }
        wrong = [f"{name} is {getattr(self, name)}, allowed: {limit}" for name, (ok, limit) in rules.items() if not ok]
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def guided(self) -> bool:
        """Whether a step down needs an evaluation of null_t besides that of C."""
        return self.guidance_scale != 1 and self.method != "negative-prompt"

    @property
    def keeps_pivot(self) -> bool:
        """Whether the result has the pivot, to which the source is corrected after each step."""
        return self.method in ("direct", "ddpm")

    @property
    def updates_first(self) -> bool:
        """Whether an embedding is updated before its loss is compared with the threshold."""
        return self.solver == "authors"

    def check_num_steps(self, num_steps: int) -> None:
        """Raise a ValueError unless the solver has a learning rate for so many steps."""
        if self.solver == "authors" and num_steps > AUTHORS_MAX_STEPS:
            raise ValueError(
                f"num_steps is {num_steps}, allowed with the solver 'authors': 1 to {AUTHORS_MAX_STEPS}, where the "
                "learning rate of the authors' code ends; 'adam' takes more"
            )

    def choose_null_init(self, empty_embedding: Tensor, prompt_embedding: Tensor) -> Tensor:
        """Return the initial value of null_T, which is every null_t where nothing is optimized."""
        start = {"null-text": self.null_init, "negative-prompt": "prompt"}.get(self.method, "empty")
        return prompt_embedding if start == "prompt" else empty_embedding

    def learning_rate_at(self, t: int, num_steps: int) -> float:
        """Learning rate at t: the authors' 0.01 (1 - i / 100) at i = T - t.

        The authors wrote this for T = 50, where it falls to half. With 'adam' it does so for any T.
        """
        steps_to_zero = AUTHORS_MAX_STEPS if self.solver == "authors" else 2 * num_steps
        return self.learning_rate * (1 - (num_steps - t) / steps_to_zero)

    def threshold_at(self, t: int, num_steps: int) -> float:
        """Threshold at t: the authors' 1e-5 + 2e-5 i at i = T - t."""
        return self.early_stop_epsilon + self.early_stop_growth * (num_steps - t)
