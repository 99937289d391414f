"""Words of two prompts against alignments made by hand; tokens are pieces of at most four letters."""

import unicodedata

import pytest
import torch
from helpers.prompts import LENGTH, tokenized
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nti_batch.diffusion.alignment import Kind, TokenizedPrompt, align
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion


def matrix(
    source_end: int, edit_end: int, padding: dict[int, int] | None = None, **columns: dict[int, float]
) -> Tensor:
    """Columns `_j` of an alignment by hand; `padding` maps padding of the edit to the source's, by default from end."""
    alignment = torch.zeros(LENGTH, LENGTH)
    alignment[0, 0] = alignment[source_end, edit_end] = 1
    from_end = zip(range(edit_end + 1, LENGTH), range(source_end + 1, LENGTH), strict=False)
    for j, i in (dict(from_end) if padding is None else padding).items():
        alignment[i, j] = 1
    for name, shares in columns.items():
        for i, share in shares.items():
            alignment[i, int(name[1:])] = share
    return alignment


def test_words_have_their_tokens():
    prompt = tokenized("A Tiger's  hat, on e-books!!")
    assert prompt.words == ("a", "tiger's", "hat", ",", "on", "e-books", "!!")
    assert prompt.spans == ((1,), (2, 3, 4, 5), (6,), (7,), (8,), (9, 10), ())
    assert (prompt.end, prompt.length) == (11, 12)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a café, naïve", ("a", "café", ",", "naïve")),
        ("Ärger in Łódź", ("ärger", "in", "łódź")),
        ("बिल्ली और हिन्दी", ("बिल्ली", "और", "हिन्दी")),
        ("แมวที่น่ารัก ตัวนี้", ("แมวที่น่ารัก", "ตัวนี้")),
        ("क्\u200dष की", ("क्\u200dष", "की")),
        ("a ❤️ cat", ("a", "❤️", "cat")),
        ("שָׁלוֹם cat", ("שָׁלוֹם", "cat")),
    ],
)
def test_marks_belong_to_their_words_in_every_form_of_unicode(prompt: str, words: tuple[str, ...]):
    for form in ("NFC", "NFD"):
        tokens = tokenized(unicodedata.normalize(form, prompt), 80)
        assert tokens.words == tuple(unicodedata.normalize("NFC", word) for word in words)
        assert all(tokens.find(unicodedata.normalize(other, words[-1])) for other in ("NFC", "NFD"))


def test_an_accent_in_two_forms_is_one_word(tiny_model: object):
    networks = StableDiffusion.load(ModelSource(str(tiny_model)))
    composed, decomposed = (unicodedata.normalize(form, "a café table") for form in ("NFC", "NFD"))
    assert composed != decomposed
    edit = networks.tokenize("a café chair")
    for kind in ("replace", "refine"):
        assert torch.equal(*(align(networks.tokenize(prompt), edit, kind) for prompt in (composed, decomposed)))


@pytest.mark.parametrize(
    ("phrase", "expected"), [("Tiger", True), ("a red hat", True), ("hat red", False), ("ti", False), ("", False)]
)
def test_a_prompt_has_the_words_that_occur_in_it_in_a_row(phrase: str, expected: bool):
    assert tokenized("a tiger, a red hat", 4).has(phrase) == expected


def test_a_prompt_without_words_has_start_end_and_padding():
    assert tokenized("") == TokenizedPrompt("", (), (), 1, LENGTH)


@pytest.mark.parametrize(
    ("phrase", "positions"),
    [("red", [2, 6]), ("red hat", [6, 7]), ("Tiger", [3, 4]), ("a red tiger", [1, 2, 3, 4])],
)
def test_a_phrase_is_found_wherever_it_occurs(phrase: str, positions: list[int]):
    assert tokenized("a red tiger's red hat".replace("'s", " +")).find(phrase) == positions


@pytest.mark.parametrize(
    ("phrase", "positions"), [("#0", [1]), ("#1", [2, 3, 4]), ("#3", [6, 7]), ("#4", [8]), ("# 5", [8, 9])]
)
def test_a_number_stands_for_what_is_between_two_spaces(phrase: str, positions: list[int]):
    """'#1' is 'tiger,' with its comma. A prompt's own words come first."""
    prompt = "a tiger, a tiger #" if phrase != "# 5" else "a tiger, a tiger # 5"
    assert tokenized(prompt).find(phrase) == positions
    assert not tokenized("one #5").has("#2") and tokenized("one #5").find("#5") == [2, 3]


@pytest.mark.parametrize("phrase", ["#5", "#-1", "#", "#1.5", "#99999999999999999999"])
def test_a_number_without_its_word_is_refused(phrase: str):
    with pytest.raises(ValueError, match="does not occur in the prompt 'a tiger sat', allowed: its words"):
        tokenized("a tiger sat").find(phrase)


@pytest.mark.parametrize("phrase", ["dog", "tiger a", "ti", ""])
def test_a_phrase_that_does_not_occur_is_refused(phrase: str):
    with pytest.raises(ValueError, match=f"^'{phrase}' does not occur in the prompt 'a tiger"):
        tokenized("a tiger on a hat beyond", 8).find(phrase)


def test_a_phrase_that_is_not_read_is_refused():
    with pytest.raises(ValueError, match=r"^'beyond' is behind what the text encoder reads of the prompt 'a tiger"):
        tokenized("a tiger on a hat beyond", 8).find("beyond")


THIRDS = {1: 1 / 3, 2: 1 / 3}
REPLACED = [
    ("a cat sat", "a dog sat", matrix(4, 4, _1={1: 1}, _2={2: 1}, _3={3: 1})),
    ("a cat sat", "a tiger sat", matrix(4, 5, _1={1: 1}, _2={2: 0.5}, _3={2: 0.5}, _4={3: 1})),
    ("a tiger sat", "a cat sat", matrix(5, 4, _1={1: 1}, _2={2: 1, 3: 1}, _3={4: 1})),
    ("a tiger sat", "a zebra sat", matrix(5, 5, _1={1: 1}, _2={2: 1}, _3={3: 1}, _4={4: 1})),
    (
        "zebra hat",
        "rhinoceros tigers",
        matrix(4, 6, _1=THIRDS, _2=THIRDS, _3=THIRDS, _4={3: 0.5}, _5={3: 0.5}),
    ),
    ("tiger", "hat", matrix(3, 2, _1={1: 1, 2: 1})),
]


@pytest.mark.parametrize(("source", "edit", "expected"), REPLACED, ids=lambda x: x if isinstance(x, str) else "")
def test_replace_spreads_a_word_over_the_word_at_its_place(source: str, edit: str, expected: Tensor):
    torch.testing.assert_close(align(tokenized(source), tokenized(edit), "replace"), expected)


def same(first: int) -> dict[int, int]:
    """Padding from one position on stands for the padding at its place."""
    return {j: j for j in range(first, LENGTH)}


REFINED = [
    ("cat sat", "a cat sat", matrix(3, 4, same(5), _2={1: 1}, _3={2: 1})),
    ("a cat sat", "cat sat", matrix(4, 3, {4: 5, **same(5)}, _1={2: 1}, _2={3: 1})),
    ("a cat", "a cat with zebras", matrix(3, 6, same(7), _1={1: 1}, _2={2: 1})),
    ("a cat with zebras", "a cat", matrix(6, 3, {4: 7, 5: 8, 6: 9, **same(7)}, _1={1: 1}, _2={2: 1})),
    ("a tiger", "a striped Tiger", matrix(4, 6, same(7), _1={1: 1}, _4={2: 1}, _5={3: 1})),
    ("a striped tiger", "a tiger", matrix(6, 4, {5: 7, 6: 8, **same(7)}, _1={1: 1}, _2={4: 1}, _3={5: 1})),
    ("a cat sat", "a tiger sat", matrix(4, 5, same(6), _1={1: 1}, _4={3: 1})),
    ("a cat", "two big dogs", matrix(3, 4, same(5))),
    ("a cat on a hat", "on a hat a cat", matrix(6, 6, same(7), _1={3: 1}, _2={4: 1}, _3={5: 1})),
    ("", "a cat", matrix(1, 3, same(4))),
    ("a b c d e f g h", "a", matrix(9, 2, {3: 10, 4: 11, **same(10)}, _1={1: 1})),
    ("a b c d e f g h i k", "a", matrix(11, 2, {}, _1={1: 1})),
]


@pytest.mark.parametrize(("source", "edit", "expected"), REFINED, ids=lambda x: x if isinstance(x, str) else "")
def test_refine_keeps_the_words_of_both_in_their_order(source: str, edit: str, expected: Tensor):
    torch.testing.assert_close(align(tokenized(source), tokenized(edit), "refine"), expected)


@pytest.mark.parametrize("kind", ["replace", "refine"])
def test_words_beyond_what_is_read_take_no_part(kind: Kind):
    long = tokenized("a b c d e f g h i j k l m")
    assert long.end == LENGTH - 1
    torch.testing.assert_close(align(long, long, kind), torch.eye(LENGTH))


def test_a_word_that_is_repeated_hundreds_of_times_is_a_word_like_others():
    alignment = align(tokenized("cat " + "red " * 300), tokenized("red " * 300), "refine")
    assert alignment.nonzero()[1:-1].tolist() == [[i + 1, i] for i in range(1, LENGTH - 2)]


def test_a_cut_off_partner_leaves_nothing_behind():
    source, edit = tokenized("a b c d e f g h i k"), tokenized("tigers b c d e f g h i k")
    expected = torch.zeros(LENGTH, LENGTH)
    for i in range(2, 10):
        expected[i, i + 1] = 1
    expected[0, 0] = expected[LENGTH - 1, LENGTH - 1] = 1
    expected[1, 1] = expected[1, 2] = 0.5
    torch.testing.assert_close(align(source, edit, "replace"), expected)


def test_replace_refuses_another_number_of_words():
    with pytest.raises(ValueError, match=r"'a big cat' has 3, 'a cat' has 2; 'refine' takes any number"):
        align(tokenized("a cat"), tokenized("a big cat"), "replace")


WORDS = st.lists(st.sampled_from(["a", "cat", "tiger", "rhinoceros"]), max_size=6)


@given(words=WORDS, kind=st.sampled_from(["replace", "refine"]))
def test_a_prompt_is_aligned_with_itself(words: list[str], kind: Kind):
    prompt = tokenized(" ".join(words), 24)
    assert torch.equal(align(prompt, prompt, kind), torch.eye(24))


@given(source=WORDS, edit=WORDS)
def test_refine_gives_each_token_one_partner_at_most_and_never_crosses(source: list[str], edit: list[str]):
    prompt = tokenized(" ".join(edit), 24)
    alignment = align(tokenized(" ".join(source), 24), prompt, "refine")
    assert torch.equal(alignment, alignment.bool().float())
    assert alignment.sum(0).max() == 1
    partners = alignment[:, : prompt.end + 1].nonzero()
    assert (partners.diff(dim=0) > 0).all()


def test_a_real_tokenizer_gives_the_spans(tiny_model: object):
    networks = StableDiffusion.load(ModelSource(str(tiny_model)))
    prompt = networks.tokenize("a Red  circle, on zoé")
    tokens = networks.text.tokenizer(prompt.prompt).input_ids
    spelled = [networks.text.tokenizer.decode([tokens[i] for i in span]).strip() for span in prompt.spans]
    assert tuple(spelled) == prompt.words == ("a", "red", "circle", ",", "on", "zoé")
    assert (prompt.end, prompt.length) == (len(tokens) - 1, 77)
