"""Work of the UNet that all evaluations of a timestep share: `python -m nti_batch.benchmarks.shared_prefix`.

At a fixed z_t and t, everything before the keys of the first cross-attention layer is the same for every embedding: the
time embedding, the first convolutions and self-attention, and the layer's queries. No gradient passes through it. The
job computes it anew in every call; this is what keeping it could save.

Floating-point operations are counted on shapes alone, without memory and weights. Stable Diffusion XL's pooled
embedding changes the time embedding, so its prompt and its null embeddings share less.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nti_batch.benchmarks.full_size import Family, random_unet
from nti_batch.benchmarks.unet_calls import timed

NUM_STEPS = 50
PASSES = {"default": (385, 285), "configs/fast.yaml": (165, 20)}
"""Forward and backward passes of an image in `nti_batch.benchmarks.virtual_device`, by configuration."""


class _PrefixEnds(Exception):
    """The evaluation has come to the keys of the first cross-attention layer."""


@contextmanager
def prefix_alone(unet: nn.Module) -> Iterator[None]:
    """End each evaluation in the `with` block where the embedding is first read."""

    def end(*_: object) -> None:
        raise _PrefixEnds

    first = next(module for name, module in unet.named_modules() if name.endswith("attn2.to_k"))
    hook = first.register_forward_pre_hook(end)
    try:
        yield
    finally:
        hook.remove()


def evaluate(unet: nn.Module, inputs: dict[str, Any], gradient: bool = False) -> None:
    """Evaluate the network for one image, up to `_PrefixEnds` if it comes, with a backward pass to the embedding."""
    embeddings: Tensor = inputs["encoder_hidden_states"].detach().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        try:
            prediction = unet(**{**inputs, "encoder_hidden_states": embeddings}, return_dict=False)[0]
        except _PrefixEnds:
            return
        if gradient:
            prediction.sum().backward()


def inputs_of(unet: Any) -> dict[str, Any]:
    """Inputs of the network for one image, on its device."""
    config, device = unet.config, unet.device
    latents = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size, device=device)
    inputs = {"sample": latents, "timestep": torch.ones(1, dtype=torch.int64, device=device)}
    inputs["encoder_hidden_states"] = torch.zeros(1, 77, config.cross_attention_dim, device=device)
    if config.addition_embed_type == "text_time":
        condition = {"text_embeds": torch.zeros(1, 1280, device=device), "time_ids": torch.zeros(1, 6, device=device)}
        return {**inputs, "added_cond_kwargs": condition}
    return inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Work of one image, in floating-point operations or in seconds."""

    prefix: float
    forward: float
    both: float
    """Work of a forward pass with its backward pass to the embedding."""

    @classmethod
    def of(cls, unet: nn.Module, measure: Callable[[Callable[[], None]], float]) -> "Shared":
        """Measure the three."""
        inputs = inputs_of(unet)
        forward, both = measure(partial(evaluate, unet, inputs)), measure(partial(evaluate, unet, inputs, True))
        with prefix_alone(unet):
            prefix = measure(partial(evaluate, unet, inputs))
        return cls(prefix=prefix, forward=forward, both=both)

    def of_job(self, forwards: int, backwards: int) -> float:
        """Share of a job's work in the UNet that keeping the prefix would save.

        Args:
            forwards: Forward passes of an image. One for each step up and one for each prompt must compute it.
            backwards: How many of them have a backward pass.
        """
        work = (forwards - backwards) * self.forward + backwards * self.both
        return (forwards - 2 * NUM_STEPS) * self.prefix / work


def count_operations(call: Callable[[], None]) -> float:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def main() -> None:
    """Print the shares of each family, by operations, and on a device by time, too."""
    parser = argparse.ArgumentParser(description="Work of the UNet that all evaluations of a timestep share.")
    parser.add_argument("--families", nargs="+", choices=get_args(Family), default=list(get_args(Family)))
    parser.add_argument("--device", help="measure the time on it, too, with one image in a call")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median counts")
    arguments = parser.parse_args()
    for family in arguments.families:
        unet = random_unet("float32", torch.device("meta"), family).requires_grad_(False).eval()
        _print(family, "operations", Shared.of(unet, count_operations))
        if arguments.device:
            device = torch.device(arguments.device)
            unet = random_unet("float32", device, family).requires_grad_(False).eval()
            rounds = [Shared.of(unet, lambda call: timed(call, device).seconds) for _ in range(arguments.rounds)]  # noqa: B023
            _print(family, "time", sorted(rounds, key=lambda each: each.prefix / each.forward)[len(rounds) // 2])


def _print(family: Family, measure: str, work: Shared) -> None:
    jobs = ", ".join(f"{100 * work.of_job(*passes):.1f} % of {name}" for name, passes in PASSES.items())
    print(
        f"{family:8} {measure:10} {100 * work.prefix / work.forward:.1f} % of a forward pass, "
        f"{100 * work.prefix / work.both:.1f} % with its backward pass; {jobs}",
        flush=True,
    )


if __name__ == "__main__":
    main()
