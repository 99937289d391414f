"""Null-text inversion of image collections as a PyTorch Lightning prediction job."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nti_batch.inversions import read_inversions as read_inversions
    from nti_batch.packing import StoredInversion as StoredInversion

__all__ = ["StoredInversion", "read_inversions"]


def __getattr__(name: str) -> object:
    """Import public names when they are asked for: torch alone takes seconds, and `--help` needs none of it."""
    if name in __all__:
        return getattr(import_module("nti_batch.inversions"), name)
    raise AttributeError(f"module 'nti_batch' has no attribute {name!r}")
