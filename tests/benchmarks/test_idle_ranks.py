"""The simulated ends of ranks are those that a person finds by hand."""

import sys

import pytest

from nti_batch.benchmarks.idle_ranks import Input, main, rank_ends

UNITS = Input(shards=1, images_per_shard=4, units_per_shard=4).units


@pytest.mark.parametrize(("helps", "ends"), [(False, [2, 8]), (True, [3, 4])])
def test_a_slow_rank_ends_earlier_if_the_other_takes_its_last_unit(helps: bool, ends: list[float]):
    assert rank_ends(UNITS, dict.fromkeys(UNITS, 1), [1, 0.25], helps) == ends


def test_the_command_prints_a_line_for_each_load_and_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    flags = ["--shards=4", "--images_per_shard=16", "--ranks", "2", "3", "--rounds=1"]
    monkeypatch.setattr(sys, "argv", ["idle_ranks", *flags])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].split("  ")[0] for line in lines[::2]] == ["all shards alike", "shards differ", "one slow rank"]
    assert len(lines) == 6
