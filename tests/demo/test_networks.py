"""The tokenizer of the embedded model's recipe."""

import os
import subprocess
import sys

from nti_batch.demo.networks import learn_merges, make_tokenizer

PRINT_VOCABULARY = """
from nti_batch.demo.networks import make_tokenizer
print(sorted(make_tokenizer().get_vocab().items(), key=lambda item: item[1]))
"""


def test_each_word_becomes_one_token_by_merging_frequent_pairs_first():
    assert learn_merges(["ab", "ab", "abc", "b"]) == [("a", "b</w>"), ("b", "c</w>"), ("a", "bc</w>")]
    caption = "a small green ring at the top and a large blue star of a white background"
    assert make_tokenizer().tokenize(caption) == [f"{word}</w>" for word in caption.split()]


def test_every_process_makes_the_same_tokenizer():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PRINT_VOCABULARY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
