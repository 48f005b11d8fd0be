"""`parquet:FILE,label=COLUMN`: rows of Parquet files; a row group is a part."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.sources.fields import choose_fields, make_example, open_tables
from pipeline.corpus.sources.source import Example, Rejected, Source
from pipeline.errors import InputError

BATCH_ROWS = 1024


def open_source(argument: str) -> Source:
    return open_tables("parquet", argument, _columns, _parts, read)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from None


def _columns(path: Path) -> list[str]:
    with _open(path) as file:
        return list(file.schema_arrow.names)


def _parts(path: Path, name: str, fields: dict[str, str]) -> Iterator[Any]:
    choose_fields(f"parquet:{path}", fields, _columns(path))  # or says which is not there
    first = 0
    with _open(path) as file:
        for group in range(file.num_row_groups):
            yield str(path), name, fields, group, first
            first += file.metadata.row_group(group).num_rows


def read(part: tuple[str, str, dict[str, str], int, int]) -> Iterator[Example | Rejected]:
    path, name, fields, group, first = part
    rows = _rows(Path(path), group, list(fields.values()))
    for number, values in enumerate(rows, first):
        yield make_example(dict(zip(fields, values, strict=True)), f"{name}:{number:07d}", Path(path).parent)


def _rows(path: Path, group: int, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """The columns' values, row by row."""
    with _open(path) as file:
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: row group {group} is damaged: {error}. Make the file again.") from None
