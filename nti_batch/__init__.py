"""Null-text inversion of image collections as a PyTorch Lightning prediction job."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nti_batch.diffusion.edit_settings import EditSettings as EditSettings
    from nti_batch.diffusion.settings import InversionSettings as InversionSettings
    from nti_batch.editing.editor import Editor as Editor
    from nti_batch.editing.editor import edit_image as edit_image
    from nti_batch.editing.inverter import invert_image as invert_image
    from nti_batch.models.load import load_model as load_model
    from nti_batch.models.source import Lora as Lora
    from nti_batch.models.source import ModelSource as ModelSource
    from nti_batch.output.dataset import InversionBatch as InversionBatch
    from nti_batch.output.dataset import InversionDataset as InversionDataset
    from nti_batch.output.inversions import read_inversions as read_inversions
    from nti_batch.output.serialization import StoredInversion as StoredInversion

    __version__: str
    """Version of the package, as in pyproject.toml."""

__all__ = [
    "EditSettings",
    "Editor",
    "InversionBatch",
    "InversionDataset",
    "InversionSettings",
    "Lora",
    "ModelSource",
    "StoredInversion",
    "edit_image",
    "invert_image",
    "load_model",
    "read_inversions",
]

_HOMES = {
    "EditSettings": "nti_batch.diffusion.edit_settings",
    "Editor": "nti_batch.editing.editor",
    "InversionBatch": "nti_batch.output.dataset",
    "InversionDataset": "nti_batch.output.dataset",
    "InversionSettings": "nti_batch.diffusion.settings",
    "Lora": "nti_batch.models.source",
    "ModelSource": "nti_batch.models.source",
    "StoredInversion": "nti_batch.output.serialization",
    "edit_image": "nti_batch.editing.editor",
    "invert_image": "nti_batch.editing.inverter",
    "load_model": "nti_batch.models.load",
    "read_inversions": "nti_batch.output.inversions",
}


def __getattr__(name: str) -> object:
    """Import public names when they are asked for: torch alone takes seconds, and `--help` needs none of it."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'nti_batch' has no attribute {name!r}")


def _version() -> str:
    try:
        return version("nti-batch")
    except PackageNotFoundError:  # the source tree is imported without being installed
        return "unknown"
