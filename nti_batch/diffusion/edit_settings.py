"""Settings of an edit in words, and their control of the tokens.

`prompt_to_prompt` and `self_attention` explain the names.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nti_batch.diffusion.alignment import Kind, TokenizedPrompt, align

DEFAULT_WORD = "default_"
"""Key of `cross_replace_steps` for all words that have no entry of their own, as in the code of prompt-to-prompt."""

StepRange = float | tuple[float, float]
"""Shares of the steps at which a range starts and ends, 0 to 1; a number s is the range (0, s).

`AttentionControl` says which steps a share selects."""

AttentionMethod = Literal["prompt-to-prompt", "masactrl", "plug-and-play"]

Words = str | tuple[str, ...]
"""A word, or several. An empty text stands for none."""

PLUG_AND_PLAY_LAYERS = (0.5, 1.0)
"""Layers in which plug-and-play replaces maps: in Stable Diffusion all of the decoder but the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditSettings:
    """Changes that an edit makes to the attention.

    A word is one word of the edit's prompt, several in a row, or by its number `#0`, `#1`, ... between the spaces.
    """

    attention: AttentionMethod = "prompt-to-prompt"
    """What an edit takes of its source: attention maps (`prompt-to-prompt`), the keys and values of self-attention, for
    a new pose or shape (`masactrl`), or features and self-attention maps (`plug-and-play`). Local blend goes with all
    of them."""

    kind: Kind = "refine"
    """`replace`: each word of the edit's prompt stands for the source's word at its place; `refine`: words that both
    prompts have stand for each other."""

    cross_replace_steps: StepRange | Mapping[str, StepRange] = 0.4
    """Share of the steps in which cross-attention is the source's: a number, [start, end], or {"default_": ..., word:
    ...}. The default is PIE-Bench's, as the one of `self_replace_steps`. For prompt-to-prompt."""

    self_replace_steps: StepRange = 0.6
    """Share of the steps in which self-attention is the source's: a number, or [start, end]. For prompt-to-prompt."""

    masactrl_steps: StepRange = (0.08, 1.0)
    """Share of the steps in which MasaCtrl attends to the source: a number, or [start, end]."""

    masactrl_layers: tuple[float, float] = (0.6, 1.0)
    """Self-attention layers in which it does, [start, end] as shares of their number, in the order of evaluation."""

    pnp_attention_steps: StepRange = 0.5
    """Share of the steps in which plug-and-play takes the source's self-attention maps: a number, or [start, end]."""

    pnp_feature_steps: StepRange = 0.8
    """Share of the steps in which plug-and-play takes the source's features: a number, or [start, end]."""

    equalizer: Mapping[str, float] = field(default_factory=dict)
    """Factors of words that get more attention (above 1) or less. For prompt-to-prompt."""

    blend_words: tuple[Words, Words] | None = None
    """A word of the source's prompt and one of the edit's, or lists of them: the image may change only where their
    attention is. An empty text stands for no word: then the attention of the other one decides alone."""

    blend_threshold: float = 0.3
    """Attention of the blend words, as a share of its maximum, above which the image may change."""

    blend_start: float = 0.2
    """Share of the steps after which local blend begins."""

    subtract_words: tuple[Words, Words] | None = None
    """The same for words where the image may not change, although the blend words' attention is there."""

    subtract_threshold: float = 0.3
    """Attention of these words, as a share of its maximum, above which the image stays."""

    def __post_init__(self) -> None:
        """Take lists for tuples, as JSON has them.

        Raises:
            ValueError: If settings are out of range. It lists each of them with its limits.
        """
        for name in _LISTS:
            object.__setattr__(self, name, _with_tuples(getattr(self, name)))
        if wrong := list(self._errors()):
            raise ValueError("; ".join(wrong))

    def _errors(self) -> Iterator[str]:
        for word, steps in self.cross_replace_by_word.items():
            place = f"[{word!r}]" if isinstance(self.cross_replace_steps, Mapping) else ""
            yield from _range_errors(f"cross_replace_steps{place}", steps)
        if DEFAULT_WORD not in self.cross_replace_by_word:
            yield f"cross_replace_steps is {self.cross_replace_steps}, allowed: words with the key {DEFAULT_WORD!r}"
        for name in _RANGES:
            yield from _range_errors(name, getattr(self, name))
        for name in ("blend_threshold", "blend_start", "subtract_threshold"):
            yield from _range_errors(name, getattr(self, name))
        if not isinstance(self.masactrl_layers, tuple):
            yield f"masactrl_layers is {self.masactrl_layers}, allowed: [start, end] with 0 <= start <= end <= 1"
        if self.subtract_words and not self.blend_words:
            yield f"subtract_words is {_with_lists(self.subtract_words)}, allowed: null, or together with blend_words"
        for word, weight in self.equalizer.items():
            if not math.isfinite(weight):
                yield f"equalizer[{word!r}] is {weight}, allowed: finite numbers"
        for name, choices in (("kind", get_args(Kind)), ("attention", get_args(AttentionMethod))):
            if getattr(self, name) not in choices:
                yield f"{name} is {getattr(self, name)!r}, allowed: {' or '.join(map(repr, choices))}"

    @property
    def cross_replace_by_word(self) -> Mapping[str, StepRange]:
        """`cross_replace_steps` as words with their ranges; all other words have the one of `DEFAULT_WORD`."""
        steps = self.cross_replace_steps
        return steps if isinstance(steps, Mapping) else {DEFAULT_WORD: steps}

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON reads them back, with lists for tuples; the constructor takes them."""
        return {item.name: _with_lists(getattr(self, item.name)) for item in fields(self)}

    @property
    def self_attention(self) -> tuple[StepRange, tuple[float, float], StepRange]:
        """Steps and layers of the method's control of self-attention, and steps of its control of features."""
        match self.attention:
            case "masactrl":
                return self.masactrl_steps, self.masactrl_layers, 0.0
            case "plug-and-play":
                return self.pnp_attention_steps, PLUG_AND_PLAY_LAYERS, self.pnp_feature_steps
            case _:
                return self.self_replace_steps, (0.0, 1.0), 0.0


_RANGES = ("self_replace_steps", "masactrl_steps", "masactrl_layers", "pnp_attention_steps", "pnp_feature_steps")
_LISTS = ("cross_replace_steps", *_RANGES, "blend_words", "subtract_words")


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
    """The same as shares of the layers."""

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

    @classmethod
    def of(cls, source: TokenizedPrompt, edit: TokenizedPrompt, settings: EditSettings) -> "EditControl":
        """Find the words in the prompts.

        Raises:
            ValueError: If a word is not in its prompt, or the prompts cannot be aligned.
        """
        self_steps, self_layers, feature_steps = settings.self_attention
        by_word = settings.cross_replace_by_word if settings.attention == "prompt-to-prompt" else {DEFAULT_WORD: 0.0}
        return cls(
            alignment=align(source, edit, settings.kind),
            weights=_by_word(edit, 1.0, settings.equalizer),
            cross_replace_steps=_ranges_by_word(edit, by_word),
            attention=settings.attention,
            self_replace_steps=_start_and_end(self_steps),
            self_replace_layers=self_layers,
            feature_steps=_start_and_end(feature_steps),
            blend_words=_pair_of_words(source, edit, settings.blend_words),
            blend_threshold=settings.blend_threshold,
            blend_start=settings.blend_start if settings.blend_words else 1.0,
            subtract_words=_pair_of_words(source, edit, settings.subtract_words),
            subtract_threshold=settings.subtract_threshold,
        )

    @classmethod
    def none(cls, length: int) -> "EditControl":
        """The control of a source, which changes nothing."""
        empty = TokenizedPrompt("", (), (), 1, length)
        nothing = EditSettings(cross_replace_steps=0.0, self_replace_steps=0.0)
        return replace(cls.of(empty, empty, nothing), alignment=torch.eye(length))


def _pair_of_words(source: TokenizedPrompt, edit: TokenizedPrompt, pair: tuple[Words, Words] | None) -> Tensor:
    """1 for the words of both prompts, 0 for other tokens, [2, tokens]."""
    words = zip((source, edit), pair or ("", ""), strict=True)
    return torch.stack([_by_word(prompt, 0.0, dict.fromkeys(_each(of_prompt), 1.0)) for prompt, of_prompt in words])


def _each(words: Words) -> Iterable[str]:
    return filter(None, [words] if isinstance(words, str) else words)


def _ranges_by_word(prompt: TokenizedPrompt, ranges: Mapping[str, StepRange]) -> Tensor:
    """Start and end of each token's range, [2, tokens] float64."""
    by_word = {word: _start_and_end(steps) for word, steps in ranges.items()}
    defaults = by_word.pop(DEFAULT_WORD)
    bounds = [(defaults[i], {word: r[i] for word, r in by_word.items()}) for i in (0, 1)]
    return torch.stack([_by_word(prompt, *bound, torch.float64) for bound in bounds])


def _by_word(
    prompt: TokenizedPrompt, default: float, values: Mapping[str, float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """A value for each token, [tokens]."""
    tokens = torch.full((prompt.length,), default, dtype=dtype)
    for word, value in values.items():
        tokens[prompt.find(word)] = value
    return tokens


def _start_and_end(steps: StepRange) -> tuple[float, float]:
    return steps if isinstance(steps, tuple) else (0.0, steps)


def _range_errors(name: str, steps: StepRange) -> Iterator[str]:
    if not isinstance(steps, tuple):
        if not 0 <= steps <= 1:
            yield f"{name} is {steps}, allowed: 0 to 1"
    elif len(steps) != 2 or not 0 <= steps[0] <= steps[1] <= 1:
        yield f"{name} is {list(steps)}, allowed: [start, end] with 0 <= start <= end <= 1"


def _with_tuples(value: Any) -> Any:
    """Tuples for lists, in a mapping too."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _with_lists(value: Any) -> Any:
    """Lists for tuples, in a mapping too."""
    if isinstance(value, Mapping):
        return {key: _with_lists(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
