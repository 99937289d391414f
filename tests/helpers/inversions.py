"""Makes inversions without a model."""

import torch

from nti_batch.diffusion.settings import InversionSettings
from nti_batch.models.source import ModelSource
from nti_batch.output.origin import origin_of
from nti_batch.records import Inversion, WorkUnit
from nti_batch.settings import InversionRunSettings

ORIGIN = origin_of(torch.device("cpu"))


UNIT = WorkUnit("shard[0]", "shard[0].tar", 1, 3)


SETTINGS = InversionRunSettings(
    source=ModelSource("demo"),
    fingerprint="sha256:0",
    precision="float32",
    num_steps=2,
    optimize_pooled=False,
    inversion=InversionSettings(),
    caption="txt",
    height=8,
    width=16,
    units_per_shard=3,
    is_folder=False,
    storage="float32",
)


KEYS = ["000", "a/b", "../../x", "quote ' \" space", "k" * 300, "\udce9 bytes".encode("utf-8", "replace").decode()]


def inversion(key: str, unit: WorkUnit = UNIT) -> Inversion:
    """Make an inversion with random tensors that depend on the key."""
    generator = torch.Generator().manual_seed(len(key))
    return Inversion(
        unit=unit,
        key=key,
        prompt=f"a picture of {key}",
        prompt_truncated=False,
        width=16,
        height=8,
        noise_latents=torch.randn(4, 2, 4, generator=generator),
        start_embedding=torch.randn(3, 5, generator=generator),
        null_embeddings=torch.randn(2, 3, 5, generator=generator),
        pivot=None,
        timesteps=[501, 1],
        inner_steps=[10, 3],
        losses=[1e-5, 2e-5],
        psnr_vae=30.5,
        psnr=30.25,
        forwards=17,
        backwards=13,
        seconds=1.5,
        input_sha256="1" * 64,
    )
