"""Noise levels of DDIM sampling, counted as the paper counts them: t = 0 is the image, t = T is noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]
"""What a network predicts: the noise e, or the velocity v = sqrt(abar) e - sqrt(1 - abar) x_0."""


@dataclass(frozen=True, slots=True, eq=False)
class DDIMSchedule:
    """Noise levels abar_0 ... abar_T, the network's timestep for each, and what the network predicts.

    diffusers counts sampling steps from the noise down: its `timesteps[i]` belongs to t = T - i here.
    """

    alphas_cumprod: Tensor
    """abar_t, [T + 1] float32, above 0, falling from t = 0 to t = T."""

    network_timesteps: Tensor
    """The network's timestep for latents at t, [T + 1] int64. Entry 0 is never used."""

    prediction_type: PredictionType = "epsilon"

    @classmethod
    def from_training(
        cls,
        alphas_cumprod: Tensor,
        timesteps: Sequence[int],
        final_alpha_cumprod: float,
        prediction_type: PredictionType = "epsilon",
    ) -> "DDIMSchedule":
        """Choose the levels of a sampling run among the levels of the training.

        Args:
            alphas_cumprod: abar at each timestep of the training, [1000].
            timesteps: Timesteps of the sampling run, T of them, noisiest first, as diffusers lists them.
            final_alpha_cumprod: abar_0, the level at which sampling ends.
            prediction_type: What the network was trained to predict.
        """
        rising = torch.tensor(list(timesteps)[::-1])
        levels = torch.cat([torch.tensor([final_alpha_cumprod]), alphas_cumprod[rising].float()])
        return cls(levels, torch.cat([torch.tensor([0]), rising]), prediction_type)

    @property
    def num_steps(self) -> int:
        """T, the number of sampling steps."""
        return len(self.alphas_cumprod) - 1

    def to(self, device: torch.device) -> "DDIMSchedule":
        """Copy the schedule to another device."""
        return replace(
            self,
            alphas_cumprod=self.alphas_cumprod.to(device),
            network_timesteps=self.network_timesteps.to(device),
        )

    def alpha(self, t: Tensor) -> Tensor:
        """abar_t of each image, [batch, 1, 1, 1], given its t, [batch] int64."""
        return self.alphas_cumprod[t].view(-1, 1, 1, 1)
