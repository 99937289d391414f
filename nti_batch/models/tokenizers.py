"""Loads the tokenizers of a model, and checks that they know words and fit its text encoders."""

from typing import TYPE_CHECKING

from nti_batch.models.source import ModelSource

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_LEGACY_END = 2
"""`eos_token_id` of old releases, with which transformers looks for the largest token instead."""


def load_tokenizer(source: ModelSource, part: str, max_tokens: int) -> "CLIPTokenizer":
    """Load a tokenizer that pads and truncates to a number of tokens.

    Args:
        source: Place of the model.
        part: Subfolder of the tokenizer.
        max_tokens: Number of tokens of every prompt.

    Raises:
        ValueError: If the tokenizer is missing or damaged.
    """
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


def check_tokens(source: ModelSource, tokenizer: "CLIPTokenizer", vocab_size: int) -> None:
    """Check that the text encoder has an embedding for each token.

    Raises:
        ValueError: If it has fewer.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"model {source.name!r} has a tokenizer with the token {largest}, and a text encoder with a vocab_size of "
            f"{vocab_size}: they are not of the same model"
        )


def check_end_token(source: ModelSource, tokenizer: "CLIPTokenizer", end: object) -> None:
    """Check the token whose projection is the pooled embedding.

    Raises:
        ValueError: If it is not the one that ends a prompt.
    """
    if end not in (_LEGACY_END, tokenizer.eos_token_id):
        raise ValueError(
            f"model {source.name!r}, text_encoder_2/config.json: eos_token_id is {end}, allowed: "
            f"{tokenizer.eos_token_id}, with which the tokenizer ends a prompt, or {_LEGACY_END}"
        )


def short_reason(error: Exception) -> str:
    """One line for the error of a library."""
    return " ".join(str(error).split())[:300] or type(error).__name__
