"""Reads tables: CSV with a line of column names, JSONL, parquet. A bad line becomes an error, and the rest is read."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nti_batch.json_object import without_repeated_keys

Cells = Mapping[str, object]


Line = tuple[int, Cells | ValueError]
"""Number of the line, and its cells by column name, or the error of the line."""


def csv_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a CSV; an empty cell is None.

    Raises:
        csv.Error: If the file is no CSV, or two of its columns have one name.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        names = rows.fieldnames or ()
        if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
            raise csv.Error(f"the column {repeated[0]!r} occurs more than once")
        for row in rows:
            if None in row or None in row.values():
                yield (
                    rows.line_num,
                    ValueError(f"the line does not have the {len(names)} columns of the first"),
                )
            else:
                yield rows.line_num, {name: cell or None for name, cell in row.items()}


def json_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a JSONL that are not empty."""
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line, object_pairs_hook=without_repeated_keys)
            except (json.JSONDecodeError, RecursionError) as error:
                yield number, ValueError(f"this is no JSON: {error}")
                continue
            except ValueError as error:
                yield number, error
                continue
            is_object = isinstance(cells, dict)
            yield number, cells if is_object else ValueError(f"this is no JSON object: {line.strip()[:40]}")


def parquet_lines(path: Path, columns: Sequence[str]) -> Iterator[Line]:
    """Yield the rows of a parquet file, with those of these columns that it has.

    Raises:
        ValueError: If pyarrow is not installed, or the file is no parquet.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(
            "parquet needs pyarrow, which is not installed: pip install 'nti-batch[parquet]', or give CSV or JSONL"
        ) from error
    with ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(columns=[name for name in columns if name in file.schema_arrow.names]):
            for cells in batch.to_pylist():
                number += 1
                yield number, cells
