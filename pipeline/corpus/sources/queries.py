"""SQL: what a query finds in files, in a DuckDB database or in an SQLite file, copied as Parquet."""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.sources import duck
from pipeline.errors import InputError
from pipeline.files import storage

NO_PARQUET = ("HUGEINT", "UHUGEINT")  # DuckDB's sums of integers; in Parquet they would become floats


@dataclass(frozen=True, kw_only=True)
class Sql:
    """db: a DuckDB or SQLite file; empty where the query itself names files."""

    db: str = ""

    def columns(self, path: Path, declared: Mapping[str, str]) -> list[str]:
        with self._open(path) as (connection, query):
            if isinstance(connection, sqlite3.Connection):
                return [name for name, *_ in connection.execute(f"SELECT * FROM {query} LIMIT 0").description]
            return [name for name, *_ in connection.execute(f"DESCRIBE {query}").fetchall()]

    def copy(self, path: Path, fields: Mapping[str, str], target: Path, scratch: Path) -> dict[int, str]:
        """Writes the fields of the rows that are found as Parquet. Rejects none."""
        names = duck.identifiers(fields)
        with self._open(path) as (connection, query):
            if isinstance(connection, sqlite3.Connection):
                rows = connection.execute(f"SELECT {', '.join(names.values())} FROM {query}")
                storage.write_atomically(target, lambda path: _write(rows, list(fields), path))
            else:
                types = {name: type for name, type, *_ in connection.execute(f"DESCRIBE {query}").fetchall()}
                texts = {ours: f"{name}::VARCHAR" for ours, name in names.items() if types[fields[ours]] in NO_PARQUET}
                duck.copy(connection, names | texts, query, target)
        return {}

    @contextlib.contextmanager
    def _open(self, path: Path) -> Iterator[tuple[Any, str]]:
        """A connection that only reads, and the query as a table."""
        query = f"({path.read_text('utf-8', 'replace').strip().rstrip(';')}\n)"
        if self.db and not Path(self.db).is_file():
            raise InputError(f"{path}: db={self.db}: no such file.")
        try:
            with contextlib.closing(self._connect()) as connection:
                yield connection, query
        except (duckdb.Error, sqlite3.Error) as error:
            raise InputError(f"{path} must hold one SELECT: {str(error).partition(chr(10))[0]}") from None

    def _connect(self) -> Any:
        if self.db:
            with open(self.db, "rb") as file:
                if file.read(15) == b"SQLite format 3":
                    connection = sqlite3.connect(f"{Path(self.db).absolute().as_uri()}?mode=ro", uri=True)
                    connection.text_factory = bytes  # which may be no UTF-8
                    return connection
        return duck.connect(self.db)


def _write(rows: sqlite3.Cursor, names: list[str], path: Path) -> None:
    """SQLite's columns have no types: all become bytes, those of a text where they are none."""
    schema = pa.schema([(name, pa.binary()) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        while found := rows.fetchmany(duck.GROUP_ROWS):
            cells = [[v if v is None or isinstance(v, bytes) else str(v).encode() for v in row] for row in found]
            writer.write_table(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in cells], schema))
