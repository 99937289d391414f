"""What is printed and logged: nothing in it moves the cursor, breaks a line or turns it around."""

import ast
import io
import json
import logging
import sys
from pathlib import Path

import pytest

import nti_batch
from nti_batch.terminal import one_line, print_error, print_exception, print_json, print_line, printable, terminal_log

PACKAGE = Path(nti_batch.__file__).parent
HOSTILE = "a\x1b]0;P\x07\x1b[2Jb\n\r\t\x7f\x9b\u202ec\u2066\u200f\u2028\ufeff\udcff\U000e0041"
ESCAPED = (
    r"a\x1b]0;P\x07\x1b[2Jb\n\r\t\x7f\x9b\u202ec\u2066\u200f\u2028\ufeff\udcff" + "\\U000e0041"  # a tag
)
LETTERS = ["猫 の 写真", "café", "cafe\u0301", "नमस्ते", "ภาษาไทย", "שלום", "قطة", "🐈", r"C:\new\x1b", "[red]bold[/red]"]


def test_characters_that_are_not_printable_are_escaped() -> None:
    assert printable(HOSTILE) == ESCAPED
    assert printable(HOSTILE).isprintable()


@pytest.mark.parametrize("text", LETTERS)
def test_letters_of_any_script_stay_as_they_are(text: str) -> None:
    assert printable(text) == text


def test_a_line_is_one_line_on_every_stream(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(HOSTILE)
    print_error(HOSTILE)
    captured = capsys.readouterr()
    assert captured.out == f"{ESCAPED}\n"
    # what is white space for Python separates words of a message, which may have lines of its own
    assert captured.err == r"nti-batch: a\x1b]0;P\x07\x1b[2Jb \x7f\x9b\u202ec\u2066\u200f \ufeff\udcff\U000e0041" + "\n"
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    print_line("café 猫", latin)
    latin.seek(0)
    assert latin.read() == "café \\u732b\n"


def test_json_stays_valid(capsys: pytest.CaptureFixture[str]) -> None:
    value = {HOSTILE: [HOSTILE, "https://a/key?b"]}
    print_json(value)
    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert printed.endswith("\n") and printed[:-1].isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://u:pw@h/a.tar?key=pw#pw: 404, see http://h/b", "GET https://h/a.tar 404, see http://h/b"),
        ("'https://u:pw@h/a.tar?pw' and \"s3://k:pw@b/c\"", "'https://h/a.tar' and \"s3://b/c\""),
        ("no address: user@host, a?b#c, 10:20, a://", "no address: user@host, a?b#c, 10:20, a://"),
    ],
)
def test_urls_in_the_messages_of_others_lose_their_credentials(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_a_traceback_is_escaped_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError(f"{HOSTILE} is wrong")
    except RuntimeError as error:
        print_exception(type(error), error, error.__traceback__)
    lines = capsys.readouterr().err.split("\n")
    assert lines[0] == "Traceback (most recent call last):"
    assert all(line.isprintable() for line in lines)
    assert r"RuntimeError: a\x1b]0;P\x07\x1b[2Jb" in lines


def test_warnings_of_the_package_are_printed_once_by_the_innermost_log(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("nti_batch.test")
    with terminal_log():
        logger.warning("%s", HOSTILE)
        with terminal_log("[rank 1/2] "):
            logger.error("inner")
        logger.warning("outer")
        logger.info("not shown")
    assert capsys.readouterr().err == f"nti-batch: {ESCAPED}\n[rank 1/2] nti-batch: inner\nnti-batch: outer\n"
    assert logging.getLogger("nti_batch").handlers == []


def test_nothing_prints_by_another_way() -> None:
    """Benchmarks, and the tools of the embedded model, print numbers of their own; `completion` prints a script."""
    own = {"terminal", "commands/completion"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if name in own or name.startswith(("benchmarks/", "demo/")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called == "print" or called.endswith(("stdout.write", "stderr.write", "console.print", "console.out")):
                found.add(f"{name}: {called}")
    assert found == set()


def test_an_error_that_ends_the_command_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    from nti_batch import cli

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["nti-batch", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert sys.excepthook is print_exception
