"""Settings of an edit, in words.

`prompt_to_prompt` and `self_attention` explain the names.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args

import torch

from nti_batch.diffusion.alignment import Kind
from nti_batch.phrases import is_unicode

DEFAULT_WORD = "default_"
"""Key of `cross_replace_steps` for all words that have no entry of their own, as in the code of prompt-to-prompt."""

FLOAT32_MAX = torch.finfo(torch.float32).max

MAX_DILATION = 64
"""Largest `dilate_mask`, as large as the latents of Stable Diffusion."""

Proximal = Literal["l0", "l1"]
"""Hard or soft threshold of proximal guidance."""

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
    """Changes that an edit makes to the attention and to the guidance.

    A word is one word of the edit's prompt, several in a row, or by its number `#0`, `#1`, ... between the spaces.
    `proximal` explains proximal guidance.
    """

    attention: AttentionMethod = "prompt-to-prompt"
    """What an edit takes of its source: attention maps (`prompt-to-prompt`), keys and values of self-attention
    (`masactrl`), or features and self-attention maps (`plug-and-play`). MasaCtrl suits a new pose or shape. Local blend
    goes with all of them."""

    kind: Kind = "refine"
    """Which words of the two prompts stand for each other: those at the same place (`replace`), or equal ones
    (`refine`)."""

    cross_replace_steps: StepRange | Mapping[str, StepRange] = 0.4
    """Share of the steps in which cross-attention is the source's: a number, [start, end], or {"default_": ..., word:
    ...}. The default is PIE-Bench's, as the one of `self_replace_steps`. For prompt-to-prompt."""

    self_replace_steps: StepRange = 0.6
    """Share of the steps in which self-attention is the source's: a number, or [start, end]. For prompt-to-prompt."""

    masactrl_steps: StepRange = (0.08, 1.0)
    """Share of the steps in which MasaCtrl attends to the source: a number, or [start, end]."""

    masactrl_layers: tuple[float, float] = (0.6, 1.0)
    """Self-attention layers in which it does: [start, end] as shares of their number. They count in the order of
    evaluation."""

    masactrl_words: tuple[Words, Words] | None = None
    """Words of the object in the source's prompt and in the edit's, or lists of them. The edit's object attends to the
    source's object alone, and its background to the background."""

    masactrl_threshold: float = 0.1
    """Attention of these words, from 0 to 1 over the image, from which a place is of the object."""

    pnp_attention_steps: StepRange = 0.5
    """Share of the steps in which plug-and-play takes self-attention maps: a number, or [start, end]."""

    pnp_feature_steps: StepRange = 0.8
    """Share of the steps in which plug-and-play takes the source's features: a number, or [start, end]."""

    equalizer: Mapping[str, float] = field(default_factory=dict)
    """Factors of the attention of words, such as 2. For prompt-to-prompt."""

    blend_words: tuple[Words, Words] | None = None
    """A word of the source's prompt and one of the edit's: the image may change only where their attention is. Each may
    be a list of words. An empty text stands for no word: then the attention of the other one decides alone."""

    blend_threshold: float = 0.3
    """Attention of the blend words, as a share of its maximum, above which the image may change."""

    blend_start: float = 0.2
    """Share of steps after which local blend begins."""

    subtract_words: tuple[Words, Words] | None = None
    """Words of the source's prompt and of the edit's: the image may not change where their attention is. They prevail
    over the blend words."""

    subtract_threshold: float = 0.3
    """Attention of these words, as a share of its maximum, above which the image stays."""

    guidance_scale: float | None = None
    """Guidance scale of the edit; null takes the inversion's, which always is the source's. Edit-friendly DDPM
    inversion was published with 3.5 for the source and 15 for the edit."""

    skip_steps: float = 0.0
    """Share of the steps, from the noisiest, in which the edit stays its source. The code of edit-friendly DDPM
    inversion has 0.36."""

    proximal: Proximal | None = None
    """Threshold on the difference that guides the edit: soft ('l1') or hard ('l0'). The settings below
    belong to it."""

    quantile: float = 0.7
    """Quantile of the difference's size as the threshold."""

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
        for name in _LISTS:
            object.__setattr__(self, name, with_tuples(getattr(self, name)))
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
        for name in _SHARES:
            yield from _range_errors(name, getattr(self, name))
        if not isinstance(self.masactrl_layers, tuple):
            yield f"masactrl_layers is {self.masactrl_layers}, allowed: [start, end] with 0 <= start <= end <= 1"
        for name in _PAIRS:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, tuple) and len(value) == 2):
                yield f"{name} is {_with_lists(value)!r}, allowed: two words, or two lists of words"
        if self.subtract_words and not self.blend_words:
            yield f"subtract_words is {_with_lists(self.subtract_words)}, allowed: null, or together with blend_words"
        for name, words in self._words():
            yield from _text_errors(name, words)
        if self.guidance_scale is not None and not 1 <= self.guidance_scale <= FLOAT32_MAX:
            yield f"guidance_scale is {self.guidance_scale}, allowed: at least 1, or null for the inversion's"
        if self.proximal not in (None, *get_args(Proximal)):
            yield f"proximal is {self.proximal!r}, allowed: {' or '.join(map(repr, get_args(Proximal)))}, or null"
        if not 0 <= self.dilate_mask <= MAX_DILATION:
            yield f"dilate_mask is {self.dilate_mask}, allowed: 0 to {MAX_DILATION}"
        for word, weight in self.equalizer.items():
            if not abs(weight) <= FLOAT32_MAX:
                yield f"equalizer[{word!r}] is {weight}, allowed: finite numbers"
        for name, choices in (("kind", get_args(Kind)), ("attention", get_args(AttentionMethod))):
            if getattr(self, name) not in choices:
                yield f"{name} is {getattr(self, name)!r}, allowed: {' or '.join(map(repr, choices))}"

    def _words(self) -> Iterator[tuple[str, Iterable[object]]]:
        """Each setting that has words, and its words."""
        yield "equalizer", self.equalizer
        yield "cross_replace_steps", self.cross_replace_by_word
        for name in _PAIRS:
            yield name, [word for side in getattr(self, name) or () for word in each_word(side)]

    @property
    def cross_replace_by_word(self) -> Mapping[str, StepRange]:
        """`cross_replace_steps` as words with their ranges; all other words have the one of `DEFAULT_WORD`."""
        steps = self.cross_replace_steps
        return steps if isinstance(steps, Mapping) else {DEFAULT_WORD: steps}

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON reads them back, with lists for tuples; the constructor takes them.

        The first settings are always there. Those that came later are left out where they have their default.
        """
        written = {item.name: getattr(self, item.name) for item in fields(self) if self._is_written(item)}
        return {name: _with_lists(value) for name, value in written.items()}

    def _is_written(self, item: "Field[Any]") -> bool:
        return item.name in FIRST_SETTINGS or getattr(self, item.name) != item.default

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


FIRST_SETTINGS = (
    "kind",
    "cross_replace_steps",
    "self_replace_steps",
    "equalizer",
    "blend_words",
    "blend_threshold",
    "blend_start",
)
"""Settings that every JSON of an edit has."""

_SHARES = (
    "blend_threshold",
    "blend_start",
    "subtract_threshold",
    "masactrl_threshold",
    "skip_steps",
    "quantile",
    "recon_lr",
    "recon_start",
)
NUMBERS = ("guidance_scale", *_SHARES)
"""Settings that are one number."""

_RANGES = ("self_replace_steps", "masactrl_steps", "masactrl_layers", "pnp_attention_steps", "pnp_feature_steps")
_PAIRS = ("blend_words", "subtract_words", "masactrl_words")
_LISTS = ("cross_replace_steps", *_RANGES, *_PAIRS)


def _range_errors(name: str, steps: StepRange) -> Iterator[str]:
    if not isinstance(steps, tuple):
        if not 0 <= steps <= 1:
            yield f"{name} is {steps}, allowed: 0 to 1"
    elif len(steps) != 2 or not 0 <= steps[0] <= steps[1] <= 1:
        yield f"{name} is {list(steps)}, allowed: [start, end] with 0 <= start <= end <= 1"


def each_word(words: Words) -> tuple[str, ...]:
    """The words of one side of a pair."""
    return words if isinstance(words, tuple) else (words,)


def _text_errors(name: str, words: Iterable[object]) -> Iterator[str]:
    for word in words:
        if not isinstance(word, str):
            yield f"{name} has the word {word!r}, allowed: texts; in YAML put numbers and words such as yes in quotes"
        elif not is_unicode(word):
            yield f"{name} has the word {word!r}, allowed: texts in Unicode"


def with_tuples(value: Any) -> Any:
    """Tuples for lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list | tuple) else value


def _with_lists(value: Any) -> Any:
    """Lists for tuples, at any depth."""
    if isinstance(value, Mapping):
        return {key: _with_lists(item) for key, item in value.items()}
    return list(map(_with_lists, value)) if isinstance(value, tuple) else value
