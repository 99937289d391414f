"""Scores by networks whose weights the user provides: CLIP score, DINO structure distance, LPIPS.

The folder of weights holds `clip` and `dino`, each as transformers' `save_pretrained` writes it, and `lpips`. No
weights are downloaded; docs/scores.md says where to get them.
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
    """How well an image fits a prompt: max(100 cos(image embedding, text embedding), 0).

    Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", 2021,
    https://arxiv.org/abs/2104.08718; PIE-Bench uses CLIP ViT-L/14.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load the model, the tokenizer and the preprocessing.

        Raises:
            ValueError: If one of them does not load.
        """
        # the one by Pillow, as in the benchmark; `CLIPImageProcessor` resizes by torchvision where that is installed
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        self.model = _load(CLIPModel.from_pretrained, folder).to(device)
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            self.preprocess = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        except OSError as error:
            raise ValueError(f"{folder} does not load: {str(error).splitlines()[0]}") from error

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score images, [batch, 3, height, width] in [0, 1], against one prompt each; return [batch]."""
        # a tokenizer need not say how many tokens the model reads
        most = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=most, return_tensors="pt")
        pixels = self.preprocess(list(to_bytes(images).cpu()), return_tensors="pt")
        output = self.model(**tokens.to(self.model.device), **pixels.to(self.model.device))
        cosines: Tensor = F.cosine_similarity(output.image_embeds, output.text_embeds)
        return 100 * cosines.clamp(min=0)


class StructureDistance:
    """How much the layouts of two images differ, whatever their colours and textures.

    Tumanyan et al., "Splicing ViT Features for Semantic Appearance Transfer", 2022, https://arxiv.org/abs/2201.00424,
    section 3. With the keys k_i(x) of token i in the last layer of DINO ViT-B/8, all heads concatenated,

        S_ij(x) = cos(k_i(x), k_j(x))        d(x, y) = mean over i, j of (S_ij(x) - S_ij(y))^2
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load the model.

        Raises:
            ValueError: If it does not load.
        """
        from transformers import ViTModel

        self.model = _load(ViTModel.from_pretrained, folder, add_pooling_layer=False).to(device)
        # the name depends on the version of transformers
        *_, self.keys = (m for name, m in self.model.named_modules() if name.split(".")[-1] in ("key", "k_proj"))

    @torch.no_grad()
    def __call__(self, images: Tensor, references: Tensor, white: float = 1.0) -> Tensor:
        """Return the distances of a batch of images.

        Args:
            images: [batch, 3, height, width] in [0, 1]. They are resized to the model's size bilinearly and without
                antialiasing, as in PIE-Bench.
            references: Images to compare with, in the same form.
            white: Value of white in the network's input. It was trained with 1, but PIE-Bench gives it 255.

        Returns:
            [batch].
        """
        return (self._similarity(images * white) - self._similarity(references * white)).square().mean(dim=(1, 2))

    def _similarity(self, images: Tensor) -> Tensor:
        """Return S, [batch, tokens, tokens]."""
        outputs: list[Tensor] = []
        size = self.model.config.image_size
        resized = F.interpolate(images.to(self.model.device), (size, size), mode="bilinear")
        mean, deviation = (
            torch.tensor(values).to(resized)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_DEVIATION)
        )
        hook = self.keys.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            self.model((resized - mean) / deviation)
        finally:
            hook.remove()
        keys = F.normalize(outputs[0], dim=-1)
        return keys @ keys.mT


@dataclass(frozen=True, slots=True)
class LearnedScores:
    """The scores whose weights are available; the others are None."""

    clip: ClipScore | None = None
    structure: StructureDistance | None = None
    lpips: Lpips | None = None
    missing: str = ""
    """A line that names the scores without weights; empty if there are none."""

    @classmethod
    def load(cls, folder: Path | None, device: torch.device) -> "LearnedScores":
        """Load the weights in a folder; None stands for no weights.

        Raises:
            ValueError: If there is no such folder, or weights in it do not load.
        """
        if folder is None:
            return cls(missing="CLIP score, structure distance and LPIPS are left out: no folder of weights is given")
        if not folder.is_dir():
            raise ValueError(f"weights {str(folder)!r} is no folder: give one with clip, dino or lpips in it")
        names = {"clip": "CLIP score", "dino": "structure distance", "lpips": "LPIPS"}
        missing = ", ".join(f"{score} ({name})" for name, score in names.items() if not (folder / name).is_dir())

        def load(name: str, score: Callable[[Path, torch.device], Score]) -> Score | None:
            return score(folder / name, device) if (folder / name).is_dir() else None

        return cls(
            clip=load("clip", ClipScore),
            structure=load("dino", StructureDistance),
            lpips=load("lpips", Lpips),
            missing=f"left out, since {str(folder)!r} has no weights for them: {missing}" if missing else "",
        )


def _load(
    from_pretrained: "Callable[..., tuple[PreTrainedModel, dict[str, list[str]]]]", folder: Path, **options: bool
) -> "PreTrainedModel":
    """Load a model in float32, from safetensors alone.

    Raises:
        ValueError: If it does not load or lacks weights.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
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
            f"{folder} does not load: {str(error).splitlines()[0]} Give a folder as transformers' "
            "`save_pretrained` writes it, with config.json and model.safetensors"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights, the first is {missing[0]!r}; fetch or save it anew")
    return model.eval().requires_grad_(False)
