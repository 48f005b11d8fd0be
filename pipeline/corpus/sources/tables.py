"""Tables. `csv:`, `jsonl:` and `sql:` are copied as Parquet, `parquet:` is read as it is. Row groups are the parts."""

import contextlib
import dataclasses
import glob
import gzip
import itertools
import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.sources import duck
from pipeline.corpus.sources.delimited import UTF16, Csv, is_gzip, open_text, start_of
from pipeline.corpus.sources.fields import (
    choose_fields,
    kind_of,
    make_examples,
    matching_files,
    split_fields,
    unlabelled,
)
from pipeline.corpus.sources.queries import Sql
from pipeline.corpus.sources.source import Example, Rejected, Source
from pipeline.errors import InputError
from pipeline.files import storage

BATCH_ROWS = 1024
PART_BYTES = 8 << 20  # of a copy, not compressed; of a Parquet file, a row group is a part
MAX_JSON_BYTES = 1 << 26  # of an object
BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)
HEAD_LINES = 1000  # of JSON lines, in which the names are looked for
SPOKEN = {"tab": "\t", "none": "", "utf-8": ""}  # what an option's value means, where that is awkward to write


@dataclasses.dataclass(frozen=True)
class Parquet:
    def columns(self, path: Path, declared: Mapping[str, str]) -> list[str]:
        with _open(str(path)) as file:
            return list(file.schema_arrow.names)


@dataclasses.dataclass(frozen=True)
class JsonLines:
    def columns(self, path: Path, declared: Mapping[str, str]) -> list[str]:
        """The names of the first objects' values."""
        if start_of(path) in UTF16:
            raise InputError(f"{path} is UTF-16, expected UTF-8. Make it that: iconv -f UTF-16 -t UTF-8 OLD > NEW")
        names: dict[str, None] = {}
        with open_text(path, "") as lines:
            for line in itertools.islice(lines, HEAD_LINES):
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    names |= dict.fromkeys(found if isinstance(found, dict) else ())
        if not names:
            raise InputError(
                f"{path}: none of its first {HEAD_LINES:,} lines is a JSON object with values. Write one object a "
                f"line. Arrays, and objects over several lines, are read by sql:QUERY.sql, with a query like "
                f"SELECT * FROM read_json({duck.literal(path)})"
            )
        return list(names)

    def copy(self, path: Path, fields: Mapping[str, str], target: Path, scratch: Path) -> dict[int, str]:
        """Writes the objects' fields, each as JSON, as Parquet. A line that is no object has none."""
        types = duck.literal(dict.fromkeys(fields.values(), "JSON"))
        options = f"format = 'newline_delimited', ignore_errors = true, maximum_object_size = {MAX_JSON_BYTES}"
        options += f", compression = '{'gzip' if is_gzip(path) else 'none'}'"  # whatever the file's name
        table = f"read_json({duck.literal(glob.escape(str(path)))}, columns = {types}, {options})"
        with duck.connect() as connection:
            duck.copy(connection, duck.identifiers(fields), table, target)
        return {}


KINDS = {"csv": Csv, "jsonl": JsonLines, "parquet": Parquet, "sql": Sql}


def open_source(kind: str, argument: str, scratch: Path | None = None) -> Source:
    """kind: one of KINDS. scratch: a folder for copies that workers reach; None for one that goes with the source."""
    names = [field.name for field in dataclasses.fields(KINDS[kind])]
    pattern, declared = split_fields(kind, argument, [*names, "inside"])
    inside = declared.pop("inside", ".")
    given = {name: declared.pop(name) for name in names if name in declared}
    table: Any = KINDS[kind](**{name: SPOKEN.get(value, value) for name, value in given.items()})
    matching = matching_files(kind, pattern)
    files = [found for found in matching if found[0].stat().st_size] or matching  # a writer's last part may be empty
    what, there = f"{kind}:{pattern}", _columns(table, files[0][0], declared)
    fields = choose_fields(what, declared, there)
    own = tempfile.TemporaryDirectory()

    def parts() -> Iterator[dict[str, Any]]:
        for number, (path, name) in enumerate(files):
            choose_fields(f"{kind}:{path}", fields, _columns(table, path, fields))  # or says which is not there
            copy, columns = path, fields
            if kind != "parquet":
                copy = (scratch or Path(own.name)) / f"table-{number:05d}.parquet"
                columns = {ours: ours for ours in fields}
                try:
                    faults = table.copy(path, fields, copy, Path(own.name))
                except duckdb.OutOfMemoryException:
                    raise InputError(
                        f"{path}: a row is so long that reading it takes more than a gigabyte of memory. Shorten it, "
                        f"or leave it out of the file."
                    ) from None
                except (duckdb.Error, *BROKEN_GZIP) as error:
                    raise InputError(f"{path}: {str(error).partition(chr(10))[0]}") from None
                yield {"rejected": [(f"{name}: line {line}", reason) for line, reason in sorted(faults.items())]}
            part = {
                "path": str(copy), "columns": columns, "is_json": kind == "jsonl", "name": name,
                "root": str(path.parent), "inside": inside,
            }  # fmt: skip
            groups: list[int] = []
            size = first = row = 0
            with _open(str(copy)) as file:
                for group in range(file.num_row_groups):
                    found = file.metadata.row_group(group)
                    groups, size, row = [*groups, group], size + found.total_byte_size, row + found.num_rows
                    if kind == "parquet" or size >= PART_BYTES or group == file.num_row_groups - 1:
                        yield part | {"groups": groups, "first": first}
                        groups, size, first = [], 0, row

    return Source(
        kind=kind_of(fields),
        files=None if "path" in fields or kind == "sql" else [path for path, _ in matching],  # these name others
        parts=lambda: list(parts()),
        read=read,
        unlabelled=unlabelled(what, fields, there),
    )


def _columns(table: Any, path: Path, declared: Mapping[str, str]) -> list[str]:
    try:
        found: list[str] = table.columns(path, declared)
    except BROKEN_GZIP as error:
        raise InputError(f"{path}: {error}. It is compressed, and cut off or damaged: get it again.") from None
    return found


def read(part: dict[str, Any]) -> Iterator[Example | Rejected]:
    if "rejected" in part:
        yield from (Rejected(source=source, reason=reason) for source, reason in part["rejected"])
        return
    name, root, inside, is_json = part["name"], Path(part["root"]), part["inside"], part["is_json"]
    for number, row in enumerate(_rows(part["path"], part["groups"], part["columns"]), part["first"]):
        where = f"{name}:{number:07d}"
        if is_json:
            if not any(row.values()):
                yield Rejected(source=where, reason=f"no JSON object with a value for {' or '.join(row)}")
                continue
            row = {ours: value and json.loads(value) for ours, value in row.items()}
        yield from make_examples(row, where, root, inside)


def _rows(path: str, groups: list[int], columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The fields' values, row by row. columns: theirs by ours."""
    with _open(path) as file:
        names, theirs = class_names(file.schema_arrow), list(columns.values())
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=theirs, use_threads=False):
                lists = {ours: batch.column(name).to_pylist() for ours, name in columns.items()}
                for ours in (ours for ours, name in columns.items() if name in names):
                    lists[ours] = [names[columns[ours]].get(value) for value in lists[ours]]
                yield from (dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: row groups {groups} are damaged: {error}. Make the file again.") from None


def class_names(schema: pa.Schema) -> dict[str, dict[int, str]]:
    """By columns, what their numbers mean, as Hugging Face's data sets note it. Others, as -1, mean no label."""
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = noted.get("info", {}).get("features", {})
    return {name: dict(enumerate(of["names"])) for name, of in features.items() if "names" in of}


@contextlib.contextmanager
def _open(path: str) -> Iterator[pq.ParquetFile]:
    with storage.location(path).open("rb") as file:
        try:
            parquet = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a Parquet file: {error}") from None
        with parquet:
            yield parquet
