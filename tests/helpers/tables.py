"""Tables to pack from, in each format."""

import csv
import json
from collections.abc import Callable
from pathlib import Path


def write_csv(path: Path, lines: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, lines[0])
        rows.writeheader()
        rows.writerows(lines)


def write_jsonl(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_parquet(path: Path, lines: list[dict[str, object]]) -> None:
    # not in every process that is to die
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), path)


TABLES: dict[str, Callable[[Path, list[dict[str, object]]], None]] = {
    ".csv": write_csv,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
}
