"""Scores by networks whose weights the user has: CLIP score, DINO structure distance, LPIPS.

A folder of weights holds `clip` and `dino`, each as transformers' `save_pretrained` writes it, and `lpips`;
docs/scores.md says where each comes from. Nothing is fetched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.data.images import to_bytes
from nti_batch.scores.lpips import Lpips

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IMAGENET_MEAN = (0.485, 0.456, 0.406)


_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


Score = TypeVar("Score")


class ClipScore:
    """How well a picture fits a prompt: 100 times the cosine of their embeddings, and no less than 0.

    Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", 2021,
    https://arxiv.org/abs/2104.08718; PIE-Bench takes CLIP ViT-L/14.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load model, tokenizer and preprocessing.

        Raises:
            ValueError: If they do not load.
        """
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        self.model = _load(CLIPModel.from_pretrained, folder).to(device)
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            self.preprocess = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        except OSError as error:
            raise ValueError(f"{folder} does not load: {str(error).splitlines()[0]}") from error

    @torch.no_grad()
    def __call__(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """Scores of pictures, [batch, 3, height, width] in [0, 1], for a prompt each: [batch]."""
        tokens = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
        images = self.preprocess(list(to_bytes(pictures).cpu()), return_tensors="pt")
        found = self.model(**tokens.to(self.model.device), **images.to(self.model.device))
        cosines: Tensor = F.cosine_similarity(found.image_embeds, found.text_embeds)
        return 100 * cosines.clamp(min=0)


class StructureDistance:
    """How differently two pictures are laid out, whatever their colours and textures.

    Tumanyan et al., "Splicing ViT Features for Semantic Appearance Transfer", 2022, https://arxiv.org/abs/2201.00424,
    section 3: mean squared difference of S(x) and S(y), with S the cosine of any two tokens' keys in the deepest layer
    of DINO ViT-B/8, all heads together.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load the model.

        Raises:
            ValueError: If it does not load.
        """
        from transformers import ViTModel

        self.model = _load(ViTModel.from_pretrained, folder, add_pooling_layer=False).to(device)
        # transformers has called it both
        *_, self.keys = (m for name, m in self.model.named_modules() if name.split(".")[-1] in ("key", "k_proj"))

    @torch.no_grad()
    def __call__(self, pictures: Tensor, references: Tensor, white: float = 1.0) -> Tensor:
        """Distances of pictures, [batch, 3, height, width] in [0, 1]: [batch].

        Args:
            pictures: Resized to the model's size, bilinearly and without antialiasing, as PIE-Bench does.
            references: The others.
            white: What white is to the network. It was trained on 1, but PIE-Bench gives it 255.
        """
        return (self._similarity(pictures * white) - self._similarity(references * white)).square().mean(dim=(1, 2))

    def _similarity(self, pictures: Tensor) -> Tensor:
        """S, [batch, tokens, tokens]."""
        found: list[Tensor] = []
        size = self.model.config.image_size
        resized = F.interpolate(pictures.to(self.model.device), (size, size), mode="bilinear")
        mean, deviation = (
            torch.tensor(values).to(resized)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_DEVIATION)
        )
        hook = self.keys.register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            self.model((resized - mean) / deviation)
        finally:
            hook.remove()
        keys = F.normalize(found[0], dim=-1)
        return keys @ keys.mT


@dataclass(frozen=True, slots=True)
class LearnedScores:
    """The scores whose weights are there; None for others."""

    clip: ClipScore | None = None
    structure: StructureDistance | None = None
    lpips: Lpips | None = None
    missing: str = ""
    """One line that says which are not; empty if all are."""

    @classmethod
    def load(cls, folder: Path | None, device: torch.device) -> "LearnedScores":
        """Load what a folder of weights holds; None is no folder.

        Raises:
            ValueError: If there is no such folder, or what it holds does not load.
        """
        if folder is None:
            return cls(missing="CLIP score, structure distance and LPIPS are left out: no folder of weights is given")
        if not folder.is_dir():
            raise ValueError(f"weights {str(folder)!r} is no folder: give one with clip, dino or lpips in it")
        parts = {"CLIP score": "clip", "structure distance": "dino", "LPIPS": "lpips"}
        lacking = {score: part for score, part in parts.items() if not (folder / part).is_dir()}

        def load(part: str, kind: Callable[[Path, torch.device], Score]) -> Score | None:
            return kind(folder / part, device) if part not in lacking.values() else None

        missing = ", ".join(f"{score} ({part})" for score, part in lacking.items())
        return cls(
            load("clip", ClipScore),
            load("dino", StructureDistance),
            load("lpips", Lpips),
            f"left out, since {str(folder)!r} has no weights for them: {missing}" if missing else "",
        )


def _load(
    from_pretrained: "Callable[..., tuple[PreTrainedModel, dict[str, list[str]]]]", folder: Path, **options: bool
) -> "PreTrainedModel":
    """A model in float32, from safetensors alone."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would advise torchvision, with which it resizes otherwise than CLIP's authors
    try:
        model, info = from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **options,
        )
    except OSError as error:
        raise ValueError(
            f"{folder} does not load: {str(error).splitlines()[0]} A folder as transformers' "
            "`save_pretrained` writes it is needed, with config.json and model.safetensors"
        ) from error
    if lacking := sorted(info["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(lacking)} weights, the first is {lacking[0]!r}; fetch or save it anew")
    return model.eval().requires_grad_(False)
