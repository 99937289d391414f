"""Settings of an edit in words, and their control of the tokens. `prompt_to_prompt` explains the names."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nti_batch.diffusion.alignment import Kind, TokenizedPrompt, align

DEFAULT_WORD = "default_"
"""Key of `cross_replace_steps` for all words that have no entry of their own, as in the code of prompt-to-prompt."""

MAX_DILATION = 64
"""Largest `dilate_mask`, as large as the latents of Stable Diffusion."""

Proximal = Literal["l0", "l1"]
"""Hard or soft threshold of proximal guidance."""

StepRange = float | tuple[float, float]
"""Shares of the steps at which a range starts and ends, 0 to 1; a number s is the range (0, s).

`AttentionControl` says which steps a share selects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditSettings:
    """Changes that an edit makes to the attention and to the guidance.

    A word is one word of the edit's prompt, or several in a row. `proximal` explains proximal guidance.
    """

    kind: Kind = "refine"
    """`replace`: each word of the edit's prompt stands for the source's word at its place; `refine`: words that both
    prompts have stand for each other."""

    cross_replace_steps: StepRange | Mapping[str, StepRange] = 0.4
    """Share of the steps in which cross-attention is the source's: a number, [start, end], or {"default_": ..., word:
    ...}. The default is PIE-Bench's, as the one of `self_replace_steps`."""

    self_replace_steps: StepRange = 0.6
    """Share of the steps in which self-attention is the source's: a number, or [start, end]."""

    equalizer: Mapping[str, float] = field(default_factory=dict)
    """Factors of words that get more attention (above 1) or less."""

    blend_words: tuple[str, str] | None = None
    """A word of the source's prompt and one of the edit's: the image may change only where their attention is. An empty
    text stands for no word: then the attention of the other one decides alone."""

    blend_threshold: float = 0.3
    """Attention of the blend words, as a share of its maximum, above which the image may change."""

    blend_start: float = 0.2
    """Share of the steps after which local blend begins."""

    guidance_scale: float | None = None
    """Guidance scale of the edit; None takes that of the inversion, which always is the source's. Edit-friendly DDPM
    inversion was published with 3.5 for the source and 15 for the edit."""

    skip_steps: float = 0.0
    """Share of the steps, from the noisiest, in which the edit stays its source: 0.36 in the code of edit-friendly
    DDPM inversion."""

    proximal: Proximal | None = None
    """Threshold on the difference that guides the edit: soft ('l1') or hard ('l0'); None for none. The settings below
    belong to it."""

    quantile: float = 0.7
    """Quantile of the difference's size that is the threshold."""

    recon_lr: float = 0.0
    """Share of the distance to the source that inversion guidance takes back where the edit changes little; 0 for no
    inversion guidance, 1 in most examples of the authors' code."""

    recon_start: float = 0.6
    """Share of the steps after which inversion guidance begins; the authors' `recon_t` of 400 timesteps."""

    dilate_mask: int = 1
    """Distance, in latent pixels, to which inversion guidance spares the surroundings of a change."""

    def __post_init__(self) -> None:
        """Take lists for tuples, as JSON has them.

        Raises:
            ValueError: If settings are out of range. It lists each of them with its limits.
        """
        for name in ("cross_replace_steps", "self_replace_steps", "blend_words"):
            object.__setattr__(self, name, _with_tuples(getattr(self, name)))
        if wrong := list(self._errors()):
            raise ValueError("; ".join(wrong))

    def _errors(self) -> Iterator[str]:
        for word, steps in self.cross_replace_by_word.items():
            place = f"[{word!r}]" if isinstance(self.cross_replace_steps, Mapping) else ""
            yield from _range_errors(f"cross_replace_steps{place}", steps)
        if DEFAULT_WORD not in self.cross_replace_by_word:
            yield f"cross_replace_steps is {self.cross_replace_steps}, allowed: words with the key {DEFAULT_WORD!r}"
        yield from _range_errors("self_replace_steps", self.self_replace_steps)
        for name in ("blend_threshold", "blend_start", "skip_steps", "quantile", "recon_lr", "recon_start"):
            yield from _range_errors(name, getattr(self, name))
        if self.guidance_scale is not None and not 1 <= self.guidance_scale < math.inf:
            yield f"guidance_scale is {self.guidance_scale}, allowed: at least 1, or null for the inversion's"
        if self.proximal not in (None, *get_args(Proximal)):
            yield f"proximal is {self.proximal!r}, allowed: {' or '.join(map(repr, get_args(Proximal)))}, or null"
        if not 0 <= self.dilate_mask <= MAX_DILATION:
            yield f"dilate_mask is {self.dilate_mask}, allowed: 0 to {MAX_DILATION}"
        for word, weight in self.equalizer.items():
            if not math.isfinite(weight):
                yield f"equalizer[{word!r}] is {weight}, allowed: finite numbers"
        if self.kind not in get_args(Kind):
            yield f"kind is {self.kind!r}, allowed: {' or '.join(map(repr, get_args(Kind)))}"

    @property
    def cross_replace_by_word(self) -> Mapping[str, StepRange]:
        """`cross_replace_steps` as words with their ranges; all other words have the one of `DEFAULT_WORD`."""
        steps = self.cross_replace_steps
        return steps if isinstance(steps, Mapping) else {DEFAULT_WORD: steps}

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON reads them back, with lists for tuples; the constructor takes them."""
        return {
            "kind": self.kind,
            "cross_replace_steps": _with_lists(self.cross_replace_steps),
            "self_replace_steps": _with_lists(self.self_replace_steps),
            "equalizer": dict(self.equalizer),
            "blend_words": _with_lists(self.blend_words),
            "blend_threshold": self.blend_threshold,
            "blend_start": self.blend_start,
            **{name: getattr(self, name) for name, default in _guidance_defaults() if getattr(self, name) != default},
        }


GUIDANCE_NUMBERS = ("guidance_scale", "skip_steps", "quantile", "recon_lr", "recon_start")
GUIDANCE = (*GUIDANCE_NUMBERS, "proximal", "dilate_mask")
"""Settings of the guidance. JSON has those that are not the default, since they came later than the others."""


def _guidance_defaults() -> list[tuple[str, object]]:
    return [(field.name, field.default) for field in fields(EditSettings) if field.name in GUIDANCE]


@dataclass(frozen=True, slots=True, eq=False)
class EditControl:
    """The control of one row."""

    alignment: Tensor
    """A, [tokens, tokens]."""

    weights: Tensor
    """s, [tokens]."""

    cross_replace_steps: Tensor
    """Start and end of each token's range, shares of the steps, [2, tokens] float64."""

    self_replace_steps: tuple[float, float]
    source_words: Tensor
    """1 for the blend word of the source's prompt, 0 for other tokens, [tokens]."""

    edit_words: Tensor
    """1 for the blend word of the edit's prompt, 0 for other tokens, [tokens]."""

    blend_threshold: float
    blend_start: float
    """1 for a row without local blend."""

    @classmethod
    def of(cls, source: TokenizedPrompt, edit: TokenizedPrompt, settings: EditSettings) -> "EditControl":
        """Find the words in the prompts.

        Raises:
            ValueError: If a word is not in its prompt, or the prompts cannot be aligned.
        """
        blend = settings.blend_words
        return cls(
            alignment=align(source, edit, settings.kind),
            weights=_by_word(edit, 1.0, settings.equalizer),
            cross_replace_steps=_ranges_by_word(edit, settings.cross_replace_by_word),
            self_replace_steps=_start_and_end(settings.self_replace_steps),
            source_words=_by_word(source, 0.0, {blend[0]: 1.0} if blend and blend[0] else {}),
            edit_words=_by_word(edit, 0.0, {blend[1]: 1.0} if blend and blend[1] else {}),
            blend_threshold=settings.blend_threshold,
            blend_start=settings.blend_start if blend else 1.0,
        )

    @classmethod
    def none(cls, length: int) -> "EditControl":
        """The control of a source, which changes nothing."""
        empty, never = torch.zeros(length), torch.zeros(2, length, dtype=torch.float64)
        return cls(torch.eye(length), torch.ones(length), never, (0.0, 0.0), empty, empty, 0.0, 1.0)


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
