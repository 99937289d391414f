"""Methods whose edits are compared: an inversion, and settings of the edits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nti_batch.benchmarks.solvers import SOLVERS

EVERYWHERE: Mapping[str, Any] = {"blend_words": None, "subtract_words": None}
"""Settings of an edit that may change the whole image."""

PLAIN: Mapping[str, Any] = {"cross_replace_steps": 0.0, "self_replace_steps": 0.0, **EVERYWHERE}
"""Settings of an edit that only exchanges the prompt."""

PROXIMAL: Mapping[str, Any] = {"proximal": "l1", "recon_lr": 1.0}
"""Settings of proximal guidance with inversion guidance, as in the authors' examples."""


@dataclass(frozen=True, slots=True)
class EditMethod:
    """Way to edit an image."""

    inversion: str
    """Name of the inversion in `SOLVERS`."""

    edit: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from those of prompt-to-prompt, as fields of `EditSettings`."""


def _attention(name: str) -> Mapping[str, Any]:
    return {"attention": name, **EVERYWHERE}


METHODS = {
    **{name: EditMethod(name) for name in SOLVERS},
    **{f"{name}, plain": EditMethod(name, PLAIN) for name in ('Adam from ""', "negative-prompt", "ddim")},
    "ddpm, plain, 0.36 skipped": EditMethod("ddpm", {**PLAIN, "skip_steps": 0.36}),
    "negative-prompt, proximal": EditMethod("negative-prompt", PROXIMAL),
    'Adam from "", proximal': EditMethod('Adam from ""', PROXIMAL),
    "ddim, MasaCtrl": EditMethod("ddim", _attention("masactrl")),
    "direct, MasaCtrl": EditMethod("direct", _attention("masactrl")),
    "ddim, plug-and-play": EditMethod("ddim", _attention("plug-and-play")),
    "direct, plug-and-play": EditMethod("direct", _attention("plug-and-play")),
}
"""Methods by name. Without other words a method is combined with prompt-to-prompt and local blend; `plain` is the
exchange of the prompt alone, and `direct` is the inversion that keeps the source of MasaCtrl and plug-and-play."""
