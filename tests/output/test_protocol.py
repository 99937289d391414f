"""All interleavings of two workers that commit to an object store, with deaths and cut puts, keep the promise."""

import re
from pathlib import Path
from typing import get_args

import pytest
from helpers.commit_protocol import Fault, Search

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
FOUND = {
    "does not read the manifest that won": "an image is committed twice",
    "continues with the next number after a cut put": "an image is committed twice",
    "puts without the condition": "a commit is overwritten",
    "puts the manifest before the tar": "a manifest names a tar that is not there",
    "removes its tar after a lost put": "a manifest names a tar that is not there",
    "keeps images that others have committed": "an image is committed twice",
}


@pytest.mark.parametrize(
    ("images", "accidents", "may_fail"),
    [
        (2, 0, False),
        (1, 2, True),
        (2, 1, False),
        pytest.param(2, 1, True, marks=pytest.mark.long),
        pytest.param(2, 2, False, marks=pytest.mark.long),
    ],
)
def test_every_image_is_committed_exactly_once_in_all_interleavings(images: int, accidents: int, may_fail: bool):
    search = Search(images=images, accidents=accidents, may_fail=may_fail).run()
    assert search.finding == "", search.history
    assert search.endings
    limit = f"at most {accidents}" if accidents else "none"
    assert f"| {images} | {limit} | {'yes' if may_fail else 'no'} | {search.states:,} |" in DOCUMENT


@pytest.mark.parametrize("fault", [fault for fault in get_args(Fault) if fault])
def test_the_search_finds_the_error_of_a_worker_that_leaves_a_step_out(fault: Fault):
    search = Search(images=2, accidents=1, fault=fault).run()
    assert search.finding == FOUND[fault]
    assert re.search(rf"\| {fault} \| {search.states:,}( states)? \| {search.finding} \|", DOCUMENT)
