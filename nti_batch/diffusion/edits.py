"""What an edit asks for, in words, and what that is in tokens. The names are explained in `prompt_to_prompt`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from nti_batch.diffusion.alignment import Kind, TokenizedPrompt, align


@dataclass(frozen=True, kw_only=True, slots=True)
class EditSettings:
    """What an edit does to the attention; words are words of its prompt, or several in a row."""

    kind: Kind = "refine"
    """`replace`: each word of the edit's prompt stands for the source's word at its place; `refine`: words that the
    source has, too, stand for those."""

    cross_replace_steps: float = 0.4
    """Share of the steps in which cross-attention is the source's; PIE-Bench's, as `self_replace_steps`."""

    self_replace_steps: float = 0.6
    """Share of the steps in which self-attention is the source's."""

    word_shares: Mapping[str, float] = field(default_factory=dict)
    """Words with a cross share of their own."""

    equalizer: Mapping[str, float] = field(default_factory=dict)
    """Words to attend to more (above 1) or less."""

    blend_words: tuple[str, str] | None = None
    """A word of the source's prompt and one of the edit's: only where they look may the picture change."""

    blend_threshold: float = 0.3
    """Attention, as a share of its maximum, above which the blend words look somewhere."""

    blend_start: float = 0.2
    """Share of the steps after which local blend begins."""

    def __post_init__(self) -> None:
        """Raise one ValueError that lists every setting out of range, with its limits."""
        shares = {
            name: getattr(self, name)
            for name in ("cross_replace_steps", "self_replace_steps", "blend_threshold", "blend_start")
        }
        shares |= {f"word_shares[{word!r}]": share for word, share in self.word_shares.items()}
        wrong = [f"{name} is {share}, allowed: 0 to 1" for name, share in shares.items() if not 0 <= share <= 1]
        wrong += [
            f"equalizer[{word!r}] is {weight}, allowed: finite numbers"
            for word, weight in self.equalizer.items()
            if not math.isfinite(weight)
        ]
        if self.kind not in get_args(Kind):
            wrong.append(f"kind is {self.kind!r}, allowed: {' or '.join(map(repr, get_args(Kind)))}")
        if wrong:
            raise ValueError("; ".join(wrong))


@dataclass(frozen=True, slots=True, eq=False)
class EditControl:
    """The control of one row."""

    alignment: Tensor
    """A, [tokens, tokens]."""

    weights: Tensor
    """s, [tokens]."""

    cross_replace_steps: Tensor
    """[tokens]."""

    self_replace_steps: float
    source_words: Tensor
    """Blend words of the source's prompt, [tokens]: 1, and 0 for others."""

    edit_words: Tensor
    """Those of the edit's."""

    blend_threshold: float
    blend_start: float
    """1 for a row that is not blended."""

    @classmethod
    def of(cls, source: TokenizedPrompt, edit: TokenizedPrompt, settings: EditSettings) -> "EditControl":
        """Look up the words.

        Raises:
            ValueError: If a word is not in its prompt, or the prompts cannot be aligned.
        """
        blend = settings.blend_words
        return cls(
            alignment=align(source, edit, settings.kind),
            weights=_by_word(edit, 1.0, settings.equalizer),
            cross_replace_steps=_by_word(edit, settings.cross_replace_steps, settings.word_shares),
            self_replace_steps=settings.self_replace_steps,
            source_words=_by_word(source, 0.0, {blend[0]: 1.0} if blend else {}),
            edit_words=_by_word(edit, 0.0, {blend[1]: 1.0} if blend else {}),
            blend_threshold=settings.blend_threshold,
            blend_start=settings.blend_start if blend else 1.0,
        )

    @classmethod
    def none(cls, length: int) -> "EditControl":
        """That of a source: there is none."""
        empty = torch.zeros(length)
        return cls(torch.eye(length), torch.ones(length), empty, 0.0, empty, empty, 0.0, 1.0)


def _by_word(prompt: TokenizedPrompt, default: float, values: Mapping[str, float]) -> Tensor:
    """A value for each token, [tokens]."""
    tokens = torch.full((prompt.length,), default)
    for word, value in values.items():
        tokens[prompt.find(word)] = value
    return tokens
