"""Loads the tokenizers of a model, and checks that they know words and fit its text encoders."""

from typing import TYPE_CHECKING

from nti_batch.models.source import ModelSource
from nti_batch.models.supported import ModelDescription

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_VOCAB_SIZE, _END = 49408, 49407
"""Defaults of transformers for the text encoders of CLIP."""

_LEGACY_END = 2
"""`eos_token_id` of old releases, with which transformers looks for the largest token instead."""


def load_tokenizers(source: ModelSource, description: ModelDescription) -> list["CLIPTokenizer"]:
    """Load the tokenizers of a model, which pad and truncate to its number of tokens.

    Raises:
        ValueError: If a tokenizer is missing or damaged, or does not fit its text encoder.
    """
    tokenizers = []
    for number in ("", "_2")[: 1 + description.is_xl]:
        tokenizer = _load(source, f"tokenizer{number}", description.max_tokens)
        encoder = source.read_config(f"text_encoder{number}", "config.json")
        vocab_size, largest = encoder.get("vocab_size", _VOCAB_SIZE), max(tokenizer.get_vocab().values())
        if not isinstance(vocab_size, int) or largest >= vocab_size:
            raise ValueError(
                f"{encoder.file}: vocab_size is {vocab_size}, allowed: above {largest}, the largest token of the "
                "model's tokenizer"
            )
        # the pooled embedding is that of the end token
        if number and (end := encoder.get("eos_token_id", _END)) not in (_LEGACY_END, tokenizer.eos_token_id):
            raise ValueError(
                f"{encoder.file}: eos_token_id is {end}, allowed: {tokenizer.eos_token_id}, with which the tokenizer "
                f"ends a prompt, or {_LEGACY_END}"
            )
        tokenizers.append(tokenizer)
    return tokenizers


def _load(source: ModelSource, part: str, max_tokens: int) -> "CLIPTokenizer":
    from transformers import CLIPTokenizer

    where, way_out = f"model {source.location!r}: {part}", "download or save it again"
    files = source.folder and {path.name for path in (source.folder / part).iterdir()}
    # transformers would make a tokenizer that knows no word
    if files and not ("tokenizer.json" in files or {"vocab.json", "merges.txt"} <= files):
        raise ValueError(f"{where} has no vocabulary (tokenizer.json, or vocab.json and merges.txt); {way_out}")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source.location, subfolder=part, **source.hub_arguments)
        tokenizer.model_max_length = max_tokens
        letter = tokenizer("a").input_ids
    # a damaged file makes transformers raise almost anything
    except Exception as error:
        raise ValueError(f"{where} does not load: {short_reason(error)}; {way_out}") from error
    match letter:
        case [_, token, end] if token not in (end, tokenizer.unk_token_id):
            return tokenizer
    raise ValueError(f"{where} does not know the word 'a'; {way_out}")


def short_reason(error: Exception) -> str:
    """One line for the error of a library."""
    return " ".join(str(error).split())[:300] or type(error).__name__
