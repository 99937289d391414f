"""Writes the pages of runs, and the input shards of the run that has one."""

from pathlib import Path

from helpers.pages import Element, read_page
from helpers.tiny import captioned, png, write_shard
from nti_batch.cli import main

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'caption' </figure><img src=//example.com/x onerror=alert(2)>"
"""Caption that must not become part of a page's HTML."""

HOSTILE_KEY = "<b onclick=alert(3)>&"
"""Key that must not become part of a page's HTML."""


def write_hostile_shards(folder: Path) -> None:
    """Write two shards, which have three damaged images and one hostile caption."""
    hostile = {f"{HOSTILE_KEY}.png": png(90), f"{HOSTILE_KEY}.txt": HOSTILE.encode()}
    bad = {f"bad{i}.{e}": f"<html>{i}<script>alert(4)".encode() for i in range(2) for e in ("png", "txt")}
    write_shard(folder / "a.tar", captioned(5) | hostile | bad)
    whole = write_shard(folder / "b.tar", captioned(3)).read_bytes()
    (folder / "b.tar").write_bytes(whole[: whole.index(b"002.png") + 600])


def written(out: Path, *more: str) -> Element:
    """Write the page of a run, and read it."""
    assert main(["report", str(out), *more]) == 0
    return read_page(out / "report.html")
