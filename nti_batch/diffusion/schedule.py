"""Noise levels of DDIM sampling, counted as the paper counts them: t = 0 is the picture, t = T is noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DDIMSchedule:
    """Noise levels abar_0 ... abar_T and the network's timestep for each.

    diffusers counts sampling steps from the noise down: its `timesteps[i]` belongs to t = T - i here.
    """

    alphas_cumprod: Tensor
    """abar_t, [T + 1] float32, falling from t = 0 to t = T."""

    network_timesteps: Tensor
    """What the network is asked for latents at t, [T + 1] int64. Entry 0 is never asked for."""

    @classmethod
    def from_training(
        cls, alphas_cumprod: Tensor, timesteps: Sequence[int], final_alpha_cumprod: float
    ) -> "DDIMSchedule":
        """Choose the levels of a sampling run among those of the training.

        Args:
            alphas_cumprod: abar at each timestep of the training, [1000].
            timesteps: Timesteps of the sampling run, T of them, noisiest first, as diffusers lists them.
            final_alpha_cumprod: abar_0, the level at which sampling ends.
        """
        rising = torch.tensor(list(timesteps)[::-1])
        levels = torch.cat([torch.tensor([final_alpha_cumprod]), alphas_cumprod[rising].float()])
        return cls(levels, torch.cat([torch.tensor([0]), rising]))

    @property
    def num_steps(self) -> int:
        """T, the number of sampling steps."""
        return len(self.alphas_cumprod) - 1

    def to(self, device: torch.device) -> "DDIMSchedule":
        """The same schedule on another device."""
        return DDIMSchedule(self.alphas_cumprod.to(device), self.network_timesteps.to(device))

    def alpha(self, t: Tensor) -> Tensor:
        """abar_t for each image, [batch, 1, 1, 1], given its t, [batch] int64."""
        return self.alphas_cumprod[t].view(-1, 1, 1, 1)
