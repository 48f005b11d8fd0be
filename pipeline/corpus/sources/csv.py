"""`csv:FILE,label=COLUMN`: rows of CSV files, or of .tsv files with tabs."""

import csv
import functools
import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.corpus.sources.fields import choose_fields, make_example, open_tables
from pipeline.corpus.sources.source import Example, Rejected, Source
from pipeline.errors import InputError

PART_BYTES = 8 << 20


def open_source(argument: str, part_bytes: int = PART_BYTES) -> Source:
    return open_tables("csv", argument, _columns, functools.partial(_parts, part_bytes), read)


def _columns(path: Path) -> list[str]:
    with open(path, "rb") as file:
        header = next(_rows(path, _decoded(file)), [])
    if len(set(header)) < len(header) or not header:
        raise InputError(f"{path}: the first line must name the columns, each once; found {header}.")
    return header


def _parts(part_bytes: int, path: Path, name: str, fields: dict[str, str]) -> Iterator[Any]:
    """Byte ranges of whole rows: a line may end inside quotes, so the file is read to find them."""
    header, position = _columns(path), 0
    choose_fields(f"csv:{path}", fields, header)  # or says which is not there

    def counted(lines: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal position
        for line in lines:
            position += len(line)
            yield line

    with open(path, "rb") as file:
        rows = _rows(path, _decoded(counted(file)))
        next(rows)
        marks = [(0, position)]  # rows and bytes before a part
        for count, _ in enumerate(rows, 1):
            if position - marks[-1][1] >= part_bytes:
                marks.append((count, position))
    places = {ours: header.index(theirs) for ours, theirs in fields.items()}
    for (first, start), (_, stop) in itertools.pairwise([*marks, (0, position)]):
        if stop > start:
            yield str(path), name, len(header), places, start, stop, first


def read(part: tuple[str, str, int, dict[str, int], int, int, int]) -> Iterator[Example | Rejected]:
    name_of_file, name, cells, places, start, stop, first = part
    path = Path(name_of_file)
    with open(path, "rb") as file:
        file.seek(start)
        lines = io.BytesIO(file.read(stop - start))
    decoded = (line.decode("utf-8", "surrogateescape") for line in lines)
    for number, row in enumerate(_rows(path, decoded), first):
        where = f"{name}:{number:07d}"
        if len(row) != cells:
            yield Rejected(source=where, reason=f"{len(row)} cells, the header has {cells}")
        else:
            yield make_example({ours: row[place] for ours, place in places.items()}, where, path.parent)


def _rows(path: Path, lines: Iterator[str]) -> Iterator[list[str]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        yield from filter(None, reader)  # an empty line is no row
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}. Mend that line.") from None


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield line.decode("utf-8-sig" if number == 0 else "utf-8", "surrogateescape")
