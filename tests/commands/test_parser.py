"""Command lines from signatures: switches, lists and groups of flags, and what a wrong one gives."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.jobs import arguments
from helpers.tiny import captioned, write_shard

from nti_batch import cli
from nti_batch.commands import invert
from nti_batch.commands.parser import function_parser, run_function
from nti_batch.exit_codes import ERROR, WRONG_SETTINGS
from nti_batch.files import OutputError

CALLS: list[tuple[object, ...]] = []


@dataclass(frozen=True)
class Group:
    """A group of flags."""

    depth: int = 1
    """Depth of the group."""


def example(out: Path, count: int = 2, json: bool = False, key: list[str] | None = None, group: Group = Group()) -> int:
    """Do an example.

    Args:
        out: Folder to use.
        count: Number of times.
        json: Print JSON.
        key: Keys to use.
        group: Further flags.
    """
    CALLS.append((out, count, json, key, group))
    return 7


def test_a_command_gets_its_arguments_with_their_types_and_defaults():
    assert run_function(example, ["out"]) == 7
    assert run_function(example, ["o", "--count=3", "--json", "--key", "a", "b", "--group.depth=4"]) == 7
    assert CALLS[-2:] == [
        (Path("out"), 2, False, None, Group()),
        (Path("o"), 3, True, ["a", "b"], Group(4)),
    ]


def test_help_has_the_docstring_and_the_default_of_each_flag():
    text = function_parser(example, "nti-batch example").format_help()
    for part in (
        "Do an example.",
        "Folder to use.",
        "Print JSON.",
        "Keys to use.",
        "Depth of the group.",
        "default: 2",
    ):
        assert part in text


@pytest.mark.parametrize("argv", [[], ["out", "--count=many"], ["out", "--nothing"], ["out", "--json=maybe"]])
def test_a_wrong_command_line_ends_with_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        run_function(example, argv)
    assert end.value.code == WRONG_SETTINGS
    assert "usage: nti-batch example" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("out is wrong"), WRONG_SETTINGS), (OutputError("the disk is full"), ERROR)]
)
def test_errors_of_users_and_disks_are_one_line(error: Exception, code: int, capsys: pytest.CaptureFixture[str]):
    def failing(out: Path) -> int:
        """Fail.

        Args:
            out: Folder.
        """
        raise error

    assert run_function(failing, ["out"]) == code
    assert capsys.readouterr().err == f"nti-batch: {error}\n"


@pytest.mark.parametrize("argv", [[], ["paint"]])
def test_no_command_and_an_unknown_one_are_refused_with_the_list(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == WRONG_SETTINGS
    assert "usage: nti-batch" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: nti-batch {name}" in out and "<class" not in out


def test_a_programming_error_while_a_job_is_built_is_no_usage_error(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Only Lightning's own errors about Trainer flags are the user's."""

    def broken(*_: object) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr(invert, "InversionModule", broken)
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    with pytest.raises(TypeError, match="unsupported operand"):
        cli.main(arguments(tiny_model, shard, tmp_path / "out"))
