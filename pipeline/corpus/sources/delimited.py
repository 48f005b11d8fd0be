"""CSV files: DuckDB copies them as Parquet, and names the lines that are no rows."""

import codecs
import collections
import contextlib
import csv
import glob
import gzip
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import duckdb
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.sources import duck
from pipeline.corpus.sources.fields import PAYLOADS
from pipeline.errors import InputError

SEPARATORS = (",", "\t", ";", "|", " ")
OPEN = "unexpected end of data"  # what csv says of a quote that is not closed yet
PACKED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MAX_ROW_BYTES = 1 << 24
MAX_ROW_LINES = 1000  # of a row in a file whose quotes are not in order
STRAY = "a quote opens a cell and does not close it; quote=none reads quotes like any other character"
REASONS = {
    "UNQUOTED VALUE": STRAY,
    "LINE SIZE OVER MAXIMUM": f"longer than {MAX_ROW_BYTES:,} bytes",
    "INVALID ENCODING": "it is not UTF-8; encoding=latin-1, or another name, says what it is",
}
SWALLOWS = ("UNQUOTED VALUE", "LINE SIZE OVER MAXIMUM")  # after these DuckDB may be anywhere in the lines that follow
Faults = dict[int, str]  # by a line's number, from 1: why it is no row


@contextlib.contextmanager
def long_cells() -> Iterator[None]:
    """Inside, csv reads cells that are as long as a row may be. Its limit is the process's, so it is put back."""
    before = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@dataclass(frozen=True, kw_only=True)
class Csv:
    """sep, encoding: empty to find it. quote: empty where quotes are like other characters."""

    encoding: str = ""
    sep: str = ""
    quote: str = '"'

    def __post_init__(self) -> None:
        if max(len(self.sep), len(self.quote)) > 1:
            raise InputError(f"sep={self.sep} and quote={self.quote} are one character. A tab is sep=tab.")

    def columns(self, path: Path, declared: Mapping[str, str]) -> list[str]:
        return self._header(path, declared)[1]

    @long_cells()
    def copy(self, path: Path, fields: Mapping[str, str], target: Path, scratch: Path) -> Faults:
        """Writes the fields of a file's rows as Parquet. Returns the lines that are no rows.

        What DuckDB does not read well (another encoding, several kinds of line ends, quotes that swallow rows) is first
        written anew in `scratch`. A stray quote then costs its line, and the lines after it are rows.
        """
        sep, names = self._header(path, fields)
        layout = Layout(sep, self.quote, len(names), {ours: names.index(theirs) for ours, theirs in fields.items()})
        if not self.encoding and start_of(path) not in (*UTF16, b"\n", b"\r"):
            with contextlib.suppress(duckdb.InvalidInputException):  # several kinds of line ends
                faults, is_in_order = layout.copy_rows(path, target)
                if is_in_order:
                    return faults
        with open_text(path, self.encoding) as lines:
            labels = layout.labels_of_rows(lines)
        if labels is None:
            with open_text(path, self.encoding) as lines:
                labels = layout.labels_of_lines(lines)
        stray: Faults = {}
        mended = scratch / "mended"
        with open_text(path, self.encoding) as lines, open(mended, "w", -1, "utf-8", "surrogateescape", "\n") as file:
            for number, row in layout.whole_rows(lines, labels):
                file.write(row or "\n")  # the lines keep their numbers
                stray |= {} if row else {number: STRAY}
        return stray | layout.copy_rows(mended, target)[0]

    def _header(self, path: Path, declared: Mapping[str, str]) -> tuple[str, list[str]]:
        """The separator by which the columns that are asked for are there, and the names of all."""
        usual = "\t" if ".tsv" in path.name.lower() else ","
        found = {sep: self._names(path, sep) for sep in ([self.sep] if self.sep else [usual, *SEPARATORS])}
        for sep, names in found.items():
            known = {*names, *declared}
            if {*declared.values()} <= {*names} and known & {*PAYLOADS, "anchor", "query"}:
                return sep, names
        return next(iter(found.items()))

    def _names(self, path: Path, sep: str) -> list[str]:
        quoting: Any = {"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE}
        with open_text(path, self.encoding) as lines:
            try:
                names = next(filter(None, csv.reader(lines, delimiter=sep, **quoting)), [])
                "".join(names).encode()
            except (UnicodeError, csv.Error, EOFError) as error:
                raise InputError(
                    f"{path}: its first line is not {self.encoding or 'UTF-8'} text: {error}. Say what it is, as "
                    f"encoding=latin-1 or encoding=utf-16."
                ) from None
        if not names:
            raise InputError(f"{path}: the first line must name the columns, each once; found none.")
        return names


def is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, kind in PACKED.items():
        if start.startswith(magic):
            raise InputError(f"{path} is compressed ({kind}). Unpack it, or compress it with gzip.")
    return start.startswith(b"\x1f\x8b")


def open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path) if is_gzip(path) else open(path, "rb")  # type: ignore[return-value]


def start_of(path: Path) -> bytes:
    """Two bytes, as a mark of the encoding; or the end of an empty first line."""
    with open_bytes(path) as file:
        start = file.read(2)
    return start[:1] if start[:1] in (b"\r", b"\n") else start


def open_text(path: Path, encoding: str) -> io.TextIOWrapper:
    """With one kind of line ends. What cannot be decoded becomes the same bytes again when it is written."""
    known = encoding or ("utf-16" if start_of(path) in UTF16 else "utf-8-sig")
    try:
        return io.TextIOWrapper(open_bytes(path), known, "surrogateescape")
    except LookupError:
        raise InputError(f"{path}: encoding={encoding} is unknown. Known are latin-1, cp1252, utf-16.") from None


@dataclass(frozen=True)
class Layout:
    """How lines are rows. cells: of a row. places: the fields', among them."""

    sep: str
    quote: str
    cells: int
    places: Mapping[str, int]

    def copy_rows(self, path: Path, target: Path) -> tuple[Faults, bool]:
        """Returns the lines that are no rows, and whether no quote swallowed rows."""
        names = [f"c{number}" for number in range(self.cells)]
        columns = {ours: names[place] for ours, place in self.places.items()}
        with open_text(path, "") as lines:  # for DuckDB an empty first line would be the header
            skip = next(number for number, line in enumerate(lines) if line != "\n")
        options = {
            "columns": dict.fromkeys(names, "VARCHAR"), "auto_detect": False, "header": True, "skip": skip,
            "delim": self.sep, "quote": self.quote, "escape": self.quote, "store_rejects": True,
            "max_line_size": MAX_ROW_BYTES, "compression": "gzip" if is_gzip(path) else "none",
        }  # fmt: skip
        given = ", ".join(f"{name} = {duck.literal(value)}" for name, value in options.items())
        table = f"read_csv({duck.literal(glob.escape(str(path)))}, {given})"
        if self.quote:  # a row of several lines may be several rows if it has their separators
            row = ", ".join([duck.literal(self.sep), *(f"coalesce({name}, '')" for name in names)])
            table = f"(SELECT *, regexp_replace(concat_ws({row}), '\\r\\n?', chr(10), 'g') AS row FROM {table})"
            seps, ends = (f"len(row) - len(replace(row, {of}, ''))" for of in (duck.literal(self.sep), "chr(10)"))
            columns["swallowed"] = f"contains(row, chr(10)) AND {seps} = {self.cells - 1} * (1 + {ends})"
        with duck.connect() as connection:
            duck.copy(connection, columns, table, target)
            query = "SELECT line_byte_position, csv_line, error_type, error_message FROM reject_errors ORDER BY ALL"
            rejected = connection.execute(query).fetchall()
        with target.open("rb") as copy:
            swallowed = bool(self.quote and pc.any(pq.read_table(copy, columns=["swallowed"])[0]).as_py())
        faults: Faults = {}
        numbers = line_numbers(path, [(position - 1, row) for position, row, _, _ in rejected])
        for number, (_, _, kind, message) in zip(numbers, rejected, strict=True):
            faults.setdefault(number, REASONS.get(kind, f"{message.split()[-1]} cells, the header has {self.cells}"))
        swallowed |= any(kind in SWALLOWS or len(row.strip().splitlines()) > 1 for _, row, kind, _ in rejected)
        return faults, not swallowed

    def labels_of_rows(self, lines: Iterable[str]) -> set[str] | None:
        """If all quotes are in order: what begins a line inside of a cell is none. None if they are not."""
        if not self.quote or "label" not in self.places:
            return set()
        try:
            rows = [row for row in csv.reader(lines, delimiter=self.sep, quotechar=self.quote, strict=True) if row]
        except csv.Error:
            return None
        return {row[self.places["label"]] for row in rows} if {self.cells} == {*map(len, rows)} else None

    def labels_of_lines(self, lines: Iterable[str]) -> set[str]:
        """Of the lines without quotes."""
        rows = (line.rstrip("\n").split(self.sep) for line in lines if self.quote not in line)
        return {row[self.places["label"]] for row in rows if len(row) == self.cells}

    def whole_rows(self, lines: Iterable[str], labels: Set[str]) -> Iterator[tuple[int, str]]:
        """(its first line's number, row); the row is empty where a line opens quotes that are not closed in order.

        Nor are they where each line that they join is a row: it has all its cells, and the first one's label is one of
        `labels`.
        """
        source, ahead, number = iter(lines), collections.deque[str](), 1

        def has(size: int) -> bool:
            ahead.extend(itertools.islice(source, max(0, size - len(ahead))))
            return len(ahead) >= size

        while has(1):
            row = [ahead[0]]
            fault = self._fault(row)
            while fault == OPEN and len(row) < MAX_ROW_LINES and has(len(row) + 1):
                row.append(ahead[len(row)])
                fault = self._fault(row) if self.quote in row[-1] else OPEN
            if fault or (len(row) > 1 and self._are_rows(row, labels)):
                row = [""]
            yield number, "".join(row)
            for _ in row:
                ahead.popleft()
            number += len(row)

    def _fault(self, row: list[str]) -> str:
        """What is wrong with the quotes of a row of these lines."""
        if not self.quote or self.quote not in row[0]:
            return ""
        try:
            next(csv.reader(row, delimiter=self.sep, quotechar=self.quote, strict=True))
        except csv.Error as error:
            return str(error)
        return ""

    def _are_rows(self, lines: list[str], labels: Set[str]) -> bool:
        rows = [line.rstrip("\n").split(self.sep) for line in lines]
        place = self.places.get("label", 0)
        return {self.cells} == {*map(len, rows)} and all(row[place].strip(self.quote) in labels for row in rows)


def line_numbers(path: Path, rows: list[tuple[int, str]]) -> list[int]:
    """From 1. rows: the byte at which each begins, and its text; some begin with the ends of lines before."""
    if not rows:
        return []
    with open_bytes(path) as file:
        ends = np.fromiter(map(len, file), np.int64).cumsum()
    before = [row[: len(row) - len(row.lstrip("\r\n"))].count("\n") for _, row in rows]
    first = np.searchsorted(ends, [position for position, _ in rows], "right") + 1
    return [int(number) for number in first + before]
