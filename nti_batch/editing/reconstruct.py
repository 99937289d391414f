"""Reconstructs images from stored inversions."""

import torch
from torch import Tensor

from nti_batch.diffusion.batch_size import in_batches
from nti_batch.diffusion.ddim import ddim_sample
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import StoredInversion


@torch.no_grad()
def reconstruct(networks: StableDiffusion, stored: list[StoredInversion], guided: bool) -> Tensor:
    """Reconstruct images from inversions, in the precision of their files.

    Direct and edit-friendly DDPM inversion end at their pivot, whatever the network predicts; other methods sample.

    Args:
        networks: Networks of the run.
        stored: Inversions of one run.
        guided: Whether to use the null embeddings of the run; False uses the empty prompt, like plain DDIM.

    Returns:
        The images, [images, 3, height, width] in [0, 1].
    """
    ends = [s.pivot[-1] for s in stored if s.pivot is not None]
    if guided and ends:
        return _decoded(networks, torch.stack(ends).to(networks.device))
    prompts = networks.embed_prompts([s.prompt for s in stored])
    null = torch.stack([s.null_embeddings for s in stored], 1).to(networks.device)
    if not guided:
        null = networks.embed_prompts([""]).expand_as(null)
    latents = ddim_sample(
        networks.predict,
        networks.schedule(len(null)),
        torch.stack([s.noise_latents for s in stored]).to(networks.device),
        prompts,
        list(null),
        stored[0].settings.inversion.guidance_scale,
    )
    return _decoded(networks, latents)


def _decoded(networks: StableDiffusion, latents: Tensor) -> Tensor:
    return in_batches(networks.decode_latents, latents, len(latents))
