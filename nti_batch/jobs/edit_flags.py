"""The flags of `nti-batch edit`; those of its output stand in `flags`."""

import os
from dataclasses import dataclass, field, replace

from nti_batch.jobs.configs import CONFIGS
from nti_batch.jobs.flags import SharedDataFlags
from nti_batch.models.source import Lora, ModelSource
from nti_batch.phrases import check_text


@dataclass(frozen=True, kw_only=True, slots=True)
class EditModelFlags:
    """Model of `nti-batch edit`."""

    name: str | None = None
    """Present place of the inversions' model, if it has moved: a folder, a hub id or a file, as for invert."""

    config: str | None = None
    """Its JSON files and tokenizers, if `name` is a .safetensors file, as for invert."""

    vae: str | None = None
    """Present place of its other VAE, if that has moved."""

    loras: list[str] = field(default_factory=list)
    """Present places of its LoRAs, with their weights, if they have moved."""

    batch_size: int = 8
    """Maximum number of images in one UNet call: an image takes one for its source and one for each edit."""

    def __post_init__(self) -> None:
        """Raise a ValueError for a value out of range."""
        if self.batch_size < 2:
            raise ValueError(f"model.batch_size is {self.batch_size}, allowed: at least 2, a source and its edit")

    def source(self, recorded: ModelSource) -> ModelSource:
        """Place of the model, given the place that the inversions recorded."""
        source = replace(recorded, vae=self.vae or recorded.vae, loras=Lora.parse_all(self.loras) or recorded.loras)
        return source if self.name is None else replace(source, name=self.name, revision=None, config=self.config)


@dataclass(frozen=True, kw_only=True, slots=True)
class EditDataFlags(SharedDataFlags):
    """Input of `nti-batch edit`."""

    inversions: str = ""
    """Output folder of `nti-batch invert`."""

    edits: str | None = None
    """JSONL or CSV with one edit a line, or a PIE-Bench folder; null edits every inversion. 'demo' stands for the edits
    of the package's samples."""

    edit_prompt: str | None = None
    """One prompt for every inversion; null, and no `edits`, reconstructs them."""

    def __post_init__(self) -> None:
        """Raise a ValueError for flags that contradict each other."""
        SharedDataFlags.__post_init__(self)
        if self.edits is not None and self.edit_prompt is not None:
            raise ValueError("data.edits and data.edit_prompt are both given: leave one out")
        if self.edit_prompt is not None:
            check_text("data.edit_prompt", self.edit_prompt)

    @property
    def edit_list(self) -> str | None:
        """Absolute path of the list of edits."""
        path = CONFIGS / "edit-demo.jsonl" if self.edits == "demo" else self.edits
        return None if path is None else os.path.realpath(path)
