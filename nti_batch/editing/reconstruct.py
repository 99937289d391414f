"""Rebuilds images from stored inversions."""

import torch
from torch import Tensor

from nti_batch.diffusion.ddim import ddim_sample
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import StoredInversion


@torch.no_grad()
def replay(networks: StableDiffusion, stored: list[StoredInversion], guided: bool) -> Tensor:
    """Rebuild pictures from inversions as read from their files, [images, 3, height, width] in [0, 1].

    Direct inversion goes to the end of its pivot, whatever the network says; the other methods sample.

    Args:
        networks: Those of the run.
        stored: Inversions of one run.
        guided: With what the run found; otherwise with the embedding of the empty prompt, as plain DDIM.
    """
    ends = [s.pivot[-1] for s in stored if s.pivot is not None]
    if guided and ends:
        return networks.decode_latents(torch.stack(ends).to(networks.device))
    settings = stored[0].metadata["settings"]
    assert isinstance(settings, dict)
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
        float(settings["model.guidance_scale"]),  # type: ignore[arg-type]
    )
    return networks.decode_latents(latents)
