"""Memory of the job's calls at full size, computed without a GPU: `python -m nti_batch.benchmarks.computed_memory`.

The tensors have shapes and no values (`FakeTensorMode`), so that a UNet of 5 GB takes no memory. What counts are the
tensors that PyTorch's operations make. What a kernel takes for itself does not, nor what CUDA and the allocator keep.
"""

import argparse
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nti_batch.benchmarks.full_size import Family, random_unet, random_vae
from nti_batch.models.acceleration import checkpoint_activations
from nti_batch.models.source import Precision

PIXELS_PER_LATENT = 8


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make within a `with` block."""

    def __init__(self, kept: Sequence[Tensor] = ()) -> None:
        """Start at zero.

        Args:
            kept: Tensors from before, whose views do not count.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.present = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in kept)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count the memory of its results until it is freed."""
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self.present += storage.nbytes()
            self.peak = max(self.peak, self.present)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.present -= size


@dataclass(frozen=True, slots=True)
class CallMemory:
    """Bytes of a call."""

    kept: int
    """Activations between forward and backward pass, with the prediction."""

    peak: int
    """Most at any time; the backward pass is included."""


def call_memory(call: Callable[[], Tensor], kept: Sequence[Tensor], inputs: Tensor | None = None) -> CallMemory:
    """Memory of a call.

    Args:
        call: Makes the call.
        kept: Weights and inputs.
        inputs: Where the gradient goes; None for a call without gradient.
    """
    with TensorMemory(kept) as memory, torch.set_grad_enabled(inputs is not None):
        result = call()
        present = memory.present
        if inputs is not None:
            torch.autograd.grad(result.sum(), inputs)
    return CallMemory(present, memory.peak)


def unet_memory(unet: Any, images: int, with_gradient: bool) -> CallMemory:
    """Memory of a call of a full-size UNet."""
    side, dtype = unet.config.sample_size, unet.dtype
    latents, timesteps = torch.randn(images, 4, side, side, dtype=dtype), torch.ones(images, dtype=torch.int64)
    embeddings = torch.randn(images, 77, unet.config.cross_attention_dim, dtype=dtype, requires_grad=with_gradient)
    of_xl = {
        "text_embeds": torch.randn(images, 1280, dtype=dtype),
        "time_ids": torch.zeros(images, 6, dtype=torch.int64),
    }

    def call() -> Tensor:
        prediction: Tensor = unet(latents, timesteps, embeddings, added_cond_kwargs=of_xl, return_dict=False)[0]
        return prediction

    kept = [latents, timesteps, embeddings, *of_xl.values(), *unet.parameters(), *unet.buffers()]
    return call_memory(call, kept, embeddings if with_gradient else None)


def for_each_image(measure: Callable[[int], CallMemory]) -> CallMemory:
    """Memory that an image adds to a call."""
    one, two = measure(1), measure(2)
    return CallMemory(two.kept - one.kept, two.peak - one.peak)


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyMemory:
    """Memory that an image adds to each kind of call of a family, in bytes."""

    forward: int
    kept: int
    backward: int
    """Peak of a forward pass with its backward pass."""

    checkpointed_kept: int
    checkpointed_backward: int
    encoder: int
    decoder: int

    def row(self, family: Family) -> str:
        """The row of a Markdown table, in GB."""
        values = (
            *(self.forward, self.kept, self.backward, self.checkpointed_kept, self.checkpointed_backward),
            *(self.encoder, self.decoder),
        )
        return f"| {family} | {' | '.join(f'{value / 1e9:.2f}' for value in values)} |"


def family_memory(family: Family, precision: Precision) -> FamilyMemory:
    """Compute the memory of a family's calls."""
    cpu = torch.device("cpu")
    with FakeTensorMode():
        unet = random_unet(precision, cpu, family).requires_grad_(False).eval()
        forward = for_each_image(lambda images: unet_memory(unet, images, with_gradient=False))
        backward = for_each_image(lambda images: unet_memory(unet, images, with_gradient=True))
        checkpoint_activations(unet)
        checkpointed = for_each_image(lambda images: unet_memory(unet, images, with_gradient=True))
        vae, side = random_vae(cpu, family).requires_grad_(False).eval(), unet.config.sample_size
        encoder, decoder = (_vae_memory(vae, side, part) for part in ("encode", "decode"))
    return FamilyMemory(
        forward=forward.peak,
        kept=backward.kept,
        backward=backward.peak,
        checkpointed_kept=checkpointed.kept,
        checkpointed_backward=checkpointed.peak,
        encoder=encoder.peak,
        decoder=decoder.peak,
    )


def _vae_memory(vae: nn.Module, side: int, part: str) -> CallMemory:
    """Memory of encoding or decoding an image of a family's own size."""
    pixels, latents = (
        torch.zeros(1, 3, PIXELS_PER_LATENT * side, PIXELS_PER_LATENT * side),
        torch.zeros(1, 4, side, side),
    )
    given = pixels if part == "encode" else latents
    return call_memory(lambda: getattr(vae, part)(given, return_dict=False)[0], [given, *vae.parameters()])


def main() -> None:
    """Compute and print a row for each family."""
    parser = argparse.ArgumentParser(description="Memory of the job's calls, computed without a GPU.")
    parser.add_argument("--precision", choices=get_args(Precision), default="bfloat16", help="precision of the UNet")
    parser.add_argument("--families", nargs="+", choices=get_args(Family), default=list(get_args(Family)))
    arguments = parser.parse_args()
    print("| GB an image | forward | kept | peak | kept, checkpointing | peak, checkpointing | encoder | decoder |")
    print("|---|---|---|---|---|---|---|---|")
    for family in arguments.families:
        print(family_memory(family, arguments.precision).row(family), flush=True)


if __name__ == "__main__":
    main()
