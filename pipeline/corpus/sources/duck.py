"""DuckDB, as ingest uses it: a connection with bounds, and copies of what it reads as Parquet."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from pipeline.files import storage

GROUP_ROWS = 8192  # of a copy's row groups


def connect(database: str = "", *, scratch: str = "", memory: str = "1GB") -> duckdb.DuckDBPyConnection:
    """One thread, so that rows keep their order; bounded memory; a database is only read; nothing is fetched.

    scratch: a folder of its own for what does not fit into memory.
    """
    options: dict[str, Any] = {
        "threads": 1, "memory_limit": memory, "temp_directory": scratch or tempfile.gettempdir(),
        "autoinstall_known_extensions": False,
    }  # fmt: skip
    return duckdb.connect(database, read_only=bool(database), config=options)


def literal(value: object) -> str:
    """A text, a truth, a number or a mapping of such, as SQL has it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(name)}: {literal(of)}" for name, of in value.items()) + "}"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def identifiers(names: Mapping[str, str]) -> dict[str, str]:
    """The names, quoted."""
    return {ours: '"' + theirs.replace('"', '""') + '"' for ours, theirs in names.items()}


def copy(connection: duckdb.DuckDBPyConnection, columns: Mapping[str, str], rows: str, target: Path) -> None:
    """Writes rows (what follows FROM) as a Parquet file. columns: SQL's expressions by their names there."""
    chosen = ", ".join(f'{expression} AS "{name}"' for name, expression in columns.items())
    form = f"(FORMAT parquet, ROW_GROUP_SIZE {GROUP_ROWS})"
    storage.write_atomically(
        target, lambda path: connection.execute(f"COPY (SELECT {chosen} FROM {rows}) TO {literal(path)} {form}")
    )
