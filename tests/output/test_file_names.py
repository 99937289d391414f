"""Names of exported files."""

import unicodedata
from itertools import combinations

import pytest
from helpers.inversions import KEYS
from hypothesis import given
from hypothesis import strategies as st

from nti_batch.output.file_names import distinct_names, readable_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IMG_0001", "IMG_0001"),
        ("a cat", "a_cat"),
        ("../../x", "______x"),
        ("猫の写真", "猫の写真"),
        ("cafe\u0301", "café"),
        ("हिन्दी", "हिन्दी"),
        ("-rf", "_-rf"),
        ("Con", "_Con"),
        ("com1", "_com1"),
        ("con.txt", "con_txt"),
        ("", "_"),
        ("a\0b\nc:d*e?f|g<h>i\"j'k\\l", "a_b_c_d_e_f_g_h_i_j_k_l"),
        ("k" * 300, "k" * 80),
        ("é" * 300, "é" * 40),
        ("\u202egnp.exe", "_gnp_exe"),
    ],
)
def test_a_name_keeps_what_can_be_read(text: str, expected: str):
    assert readable_name(text) == expected


@given(st.text(max_size=200))
def test_any_name_is_safe(text: str):
    name = readable_name(text)
    assert 0 < len(name.encode()) <= 81
    assert not set(name) & set('/\\:*?"<>|. ') and name.isprintable() and not name.startswith("-")
    assert unicodedata.is_normalized("NFC", name) or len(name.encode()) >= 78


def test_names_that_a_file_system_may_confuse_get_a_checksum():
    wanted = {1: "cat", 2: "Cat", 3: "dog", 4: "ﬁg", 5: "fig"}
    found = distinct_names(wanted)
    assert found[3] == "dog"
    assert all(found[id].startswith(f"{wanted[id]}-") and len(found[id]) == len(wanted[id]) + 9 for id in (1, 2, 4, 5))
    assert found == distinct_names(dict(reversed(wanted.items())))
    # somebody has made names like ours
    forged = distinct_names({**wanted, 6: found[1].upper(), 7: found[2]})
    assert len({name.casefold() for name in forged.values()}) == 7


@given(st.lists(st.sampled_from(["a", "A", "a_", "ä", "a\u0308", "ﬁ", "fi", "ß", "ss", *KEYS]), unique=True))
def test_no_two_names_are_the_same_on_any_file_system(keys: list[str]):
    found = distinct_names({key: readable_name(key) for key in keys})
    for one, other in combinations(found.values(), 2):
        for form in ("NFC", "NFD", "NFKC"):
            assert unicodedata.normalize(form, one).casefold() != unicodedata.normalize(form, other).casefold()
