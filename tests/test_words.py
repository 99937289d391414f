"""Names that were replaced by standard terms stay away, in code, messages, settings and documents."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLD = [
    r"slots(?!=True)",
    r"find_slots",
    r"cross_share|self_share|word_shares|word_weights",
    r"data\.slices|slices_per|(?<!net)\.slices|slices=(?!\d)",
    r"(?<=model\.)(start|rows)",
    r"class Look|Look\(|wants_gradient",
    r"retreat|climb|\.trusted|can_move|_lands",
    r"def settle|def adopt|\.verdict\(|tick\(",
    r"MOST|WORTHWHILE|PATIENCE|PAUSES|STALL_SECONDS",
    r"NullTextInversion|NullTextSettings|NullTextState",
    r"UnitRead|Flight|(?<=\.)ended|Unpacked|strangers|faults|Pace",
    r"told|tell_plan|conclude|assemble",
    r"appearing|write_whole|write_beside|authors_loop|stopwatch|class Turn|side_by_side",
    r"EditImages|PartsWriter|InversionDataModule|EditDataModule|ManifestRow",
]
PATTERN = re.compile("|".join(rf"\b(?:{old})(?!\w)" for old in OLD))
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
SEARCHED = [
    name
    for name in FILES
    if Path(name).suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".sbatch", ".html", ".jsonl", ""}
    and name not in ("CHANGELOG.md", "LICENSE", "tests/test_words.py")
    and not name.startswith("tests/scores/")
    and (ROOT / name).is_file()
]


@pytest.mark.parametrize("name", SEARCHED)
def test_no_file_uses_an_old_name(name: str):
    lines = (ROOT / name).read_text().splitlines()
    assert [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if PATTERN.search(line)] == []
