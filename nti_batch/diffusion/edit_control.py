"""Control of one edit: its settings for the tokens of its prompts.

`prompt_to_prompt` and `self_attention` explain the names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nti_batch.diffusion.alignment import TokenizedPrompt, align
from nti_batch.diffusion.edit_settings import DEFAULT_WORD, AttentionMethod, EditSettings, StepRange, Words, each_word


@dataclass(frozen=True, slots=True, eq=False)
class EditControl:
    """The control of one row."""

    alignment: Tensor
    """A, [tokens, tokens]."""

    weights: Tensor
    """s, [tokens]."""

    cross_replace_steps: Tensor
    """Start and end of each token's range, shares of the steps, [2, tokens] float64."""

    attention: AttentionMethod
    self_replace_steps: tuple[float, float]
    """Start and end of the control of self-attention, shares of the steps."""

    self_replace_layers: tuple[float, float]
    """Start and end of the control of self-attention, shares of the layers."""

    feature_steps: tuple[float, float]
    """Start and end of the control of features, shares of the steps."""

    blend_words: Tensor
    """1 for the blend words of the source's and the edit's prompt, 0 for other tokens, [2, tokens]."""

    blend_threshold: float
    blend_start: float
    """1 for a row without local blend."""

    subtract_words: Tensor
    """1 for the words to subtract from local blend, [2, tokens]."""

    subtract_threshold: float
    foreground_words: Tensor
    """1 for the words of the object in MasaCtrl, [2, tokens]."""

    foreground_threshold: float

    @classmethod
    def of(cls, source: TokenizedPrompt, edit: TokenizedPrompt, settings: EditSettings) -> "EditControl":
        """Find the words in the prompts.

        Raises:
            ValueError: If a word is not in its prompt, or the prompts cannot be aligned; the text names the setting.
        """
        self_steps, self_layers, feature_steps = settings.self_attention
        is_prompt_to_prompt = settings.attention == "prompt-to-prompt"
        by_word = settings.cross_replace_by_word if is_prompt_to_prompt else {DEFAULT_WORD: 0.0}
        return cls(
            alignment=align(source, edit, settings.kind),
            weights=_by_word("equalizer", edit, 1.0, settings.equalizer if is_prompt_to_prompt else {}),
            cross_replace_steps=_ranges_by_word("cross_replace_steps", edit, by_word),
            attention=settings.attention,
            self_replace_steps=_start_and_end(self_steps),
            self_replace_layers=self_layers,
            feature_steps=_start_and_end(feature_steps),
            blend_words=_pair_of_words("blend_words", source, edit, settings.blend_words),
            blend_threshold=settings.blend_threshold,
            blend_start=settings.blend_start if settings.blend_words else 1.0,
            subtract_words=_pair_of_words("subtract_words", source, edit, settings.subtract_words),
            subtract_threshold=settings.subtract_threshold,
            foreground_words=_pair_of_words(
                "masactrl_words", source, edit, settings.masactrl_words if settings.attention == "masactrl" else None
            ),
            foreground_threshold=settings.masactrl_threshold,
        )

    @classmethod
    def none(cls, length: int) -> "EditControl":
        """The control of a source, which changes nothing."""
        empty = TokenizedPrompt("", (), (), 0, length)
        nothing = EditSettings(cross_replace_steps=0.0, self_replace_steps=0.0)
        return replace(cls.of(empty, empty, nothing), alignment=torch.eye(length))


def _pair_of_words(
    name: str, source: TokenizedPrompt, edit: TokenizedPrompt, pair: tuple[Words, Words] | None
) -> Tensor:
    """1 for the words of both prompts, 0 for other tokens, [2, tokens]."""
    words = zip((source, edit), pair or ("", ""), strict=True)
    return torch.stack(
        [
            _by_word(name, prompt, 0.0, dict.fromkeys(filter(None, each_word(of_prompt)), 1.0))
            for prompt, of_prompt in words
        ]
    )


def _ranges_by_word(name: str, prompt: TokenizedPrompt, ranges: Mapping[str, StepRange]) -> Tensor:
    """Start and end of each token's range, [2, tokens] float64."""
    by_word = {word: _start_and_end(steps) for word, steps in ranges.items()}
    defaults = by_word.pop(DEFAULT_WORD)
    bounds = [(defaults[i], {word: r[i] for word, r in by_word.items()}) for i in (0, 1)]
    return torch.stack([_by_word(name, prompt, *bound, torch.float64) for bound in bounds])


def _by_word(
    name: str, prompt: TokenizedPrompt, default: float, values: Mapping[str, float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """A value of the setting of a name for each token, [tokens]."""
    tokens = torch.full((prompt.length,), default, dtype=dtype)
    for word, value in values.items():
        try:
            tokens[prompt.find(word)] = value
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return tokens


def _start_and_end(steps: StepRange) -> tuple[float, float]:
    return steps if isinstance(steps, tuple) else (0.0, steps)
