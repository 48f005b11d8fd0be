"""The keys of all examples: their order, their common shape, which are held out, copies, and where shards are cut.

No payload is here, only its digest and its length. The work is DuckDB's, whose sorts, groups and joins spill to the
disk: memory has a bound, however many rows there are, but for what NumPy gets: edges between copies and groups where
single examples are drawn, and given triplets. A row's number is its `rowid`, for a table keeps the order that
it was made in. The tables, in the order in which they are made:

rejected                    id, reason
classes, contents, groups   a number for each label, each digest that is there more than once, each group
keys                        an example a row, by label and id, with these numbers
train, validation, eval     those of a split, in the same order
"""

import glob
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import PythonUDFType
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.corpus.manifest import DTYPES, SPLITS, Feature, SplitRule
from pipeline.corpus.options import IngestOptions
from pipeline.corpus.sources.source import Rejected
from pipeline.triplets.draws import draw_key

SPLIT_BY_CLASS_FROM = 20  # classes
BATCH_ROWS = 8192  # of what is read of a table at once
KEYS = pa.schema(
    [
        ("label", pa.binary()), ("id", pa.binary()), ("sha256", pa.binary()), ("group", pa.binary()),
        ("split", pa.string()), ("role", pa.string()), ("shape", pa.list_(pa.int64())), ("part", pa.int64()),
        ("offset", pa.int64()), ("length", pa.int64()), ("bits", pa.int64()), ("side", pa.string()),
        ("reason", pa.string()),
    ]
)  # fmt: skip
"""What is staged of an example. A row with a reason is none: its id says where it was, its offset is its number."""
SHARD_KEYS = np.dtype([(name, "<i8") for name in ("part", "offset", "length", "bits", "content", "group")])
"""What makes a row of a shard. bits: -1 for none. content: the first row of the split with the same payload. group: a
number, in order of first appearance; -1 without one."""


def order_rows(db: duckdb.DuckDBPyConnection, files: Sequence[Path], kind: str) -> Feature | None:
    """Orders the examples of staged KEYS by (label, id), in byte order; tells what is rejected, as repeated ids are.

    files: Parquet, of the parts in order. Returns the payload of one example or more, with None where images' sizes
    differ; None if there is no example. Vectors of another length than most are rejected.
    """
    names = [glob.escape(str(path)) for path in files]
    (db.read_parquet(names) if names else db.from_arrow(KEYS.empty_table())).create_view("staged")
    db.execute("""
        CREATE TABLE rejected AS SELECT id, reason FROM staged WHERE reason IS NOT NULL ORDER BY part, "offset";
        CREATE TABLE twice AS SELECT id FROM staged WHERE reason IS NULL GROUP BY id HAVING count(*) > 1;
        CREATE TABLE again AS SELECT id, part, "offset" FROM staged SEMI JOIN twice USING (id) WHERE reason IS NULL
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY part, "offset") > 1;
        INSERT INTO rejected SELECT id, 'the id was there before; the first is kept' FROM again
            ORDER BY id, part, "offset";
        CREATE VIEW examples AS FROM (FROM staged WHERE reason IS NULL) ANTI JOIN again USING (part, "offset");
    """)
    payload = _payload(db, kind)
    fits = "true"
    if payload and kind == "vector":
        fits = f"shape = {list(payload.shape)}"
        db.execute(f"""
            INSERT INTO rejected SELECT id, format('vector of {{}} numbers, most have {payload.shape[0]}', shape[1])
                FROM examples WHERE NOT {fits} ORDER BY label, id
        """)
    db.execute(f"""
        CREATE VIEW fitting AS FROM examples WHERE {fits};
        CREATE TABLE classes AS SELECT label, row_number() OVER (ORDER BY label) AS class FROM fitting GROUP BY label;
        CREATE TABLE contents AS SELECT sha256, row_number() OVER () AS content FROM fitting GROUP BY sha256
            HAVING count(*) > 1;
        CREATE TABLE groups AS SELECT "group", row_number() OVER () AS unit FROM fitting WHERE "group" IS NOT NULL
            GROUP BY "group";
        CREATE TABLE keys AS SELECT class, id, content, unit, coalesce(array_position({list(SPLITS[1:])}, split), 0)
            AS given, role, side, part, "offset", length, bits
            FROM fitting JOIN classes USING (label) LEFT JOIN contents USING (sha256) LEFT JOIN groups USING ("group")
            ORDER BY class, id;
    """)
    return payload


def _payload(db: duckdb.DuckDBPyConnection, kind: str) -> Feature | None:
    """Of vectors, the most frequent; of as frequent ones, the first."""
    if not db.execute("FROM examples LIMIT 1").fetchone():
        return None
    shape: tuple[int | None, ...] = ()
    if kind == "image":
        ends = db.execute("SELECT min(shape[1:2]), max(shape[1:2]), max(shape[3]) FROM examples").fetchall()
        [(least, most, channels)] = ends
        shape = (*(most if least == most else (None, None)), channels)
    elif kind == "vector":
        by_count = "FROM examples GROUP BY shape ORDER BY count(*) DESC, min((label, id)) LIMIT 1"
        [(lengths,)] = db.execute(f"SELECT shape {by_count}").fetchall()
        shape = tuple(lengths)
    return Feature(kind=kind, shape=shape, dtype=DTYPES[kind])


def rejected(db: duckdb.DuckDBPyConnection) -> Iterator[Rejected]:
    """What a source could not read, part by part; then repeated ids; then vectors of another length."""
    for id, reason in _stream(db, "FROM rejected"):
        yield Rejected(source=id.decode(), reason=reason)


def facts(db: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Of all examples: the fields of a CorpusManifest by these names."""
    found = db.sql("""
        SELECT (SELECT count(*) FROM rejected) AS rejected, max(bits) AS bits, count(role) > 0 AS roles,
            count(unit) > 0 AS grouped, count(*) FILTER (side = 'negative') AS given_negatives,
            list(DISTINCT given) FILTER (given > 0) AS given FROM keys
    """)
    named = dict(zip(found.columns, found.fetchall()[0], strict=True))
    return named | {"given": sorted(SPLITS[code] for code in named["given"] or []), "alike": _alike(db)}


def _alike(db: duckdb.DuckDBPyConnection) -> list[list[str]]:
    """Labels that differ only in case, spaces, Unicode's form, or as 0 and 0.0 do: they may be meant to be one."""

    def plain(labels: pa.ChunkedArray) -> pa.Array:
        texts = (label.decode() for label in labels.to_pylist())
        bare = ("".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)
        return pa.array([re.sub(r"^(-?\d+)\.0+$", r"\1", text).encode() for text in bare], pa.binary())

    db.create_function("plain", plain, ["BLOB"], "BLOB", type=PythonUDFType.ARROW)
    groups = "GROUP BY plain(label) HAVING count(*) > 1 ORDER BY min(label)"
    found = db.execute(f"SELECT list(label ORDER BY label) FROM classes {groups}").fetchall()
    return [[label.decode() for label in labels] for (labels,) in found]


def assign_splits(db: duckdb.DuckDBPyConnection, options: IngestOptions) -> SplitRule:
    """Makes the tables of the splits. Returns by what rows were drawn.

    What the source puts into a split stays there. Of the others, those splits that it gave nothing for are drawn: by
    class (unseen classes), or by example, class by class, so that each split has every class. Unless told, as the split
    that is given: its classes are those to train on, or others; if none is, by class from 20 classes up. The draw is a
    hash of the seed and the label or id. By example, what copies and groups join stays together: a held-out copy would
    be no test.
    """
    told = {SPLITS[code] for (code,) in db.execute("SELECT DISTINCT given FROM keys").fetchall()}
    validation, evaluation = (0.0 if name in told else getattr(options, f"{name}_share") for name in SPLITS[1:])
    key = str(draw_key(options.seed, 0, "split")).encode()

    def draw(names: pa.ChunkedArray) -> pa.Array:
        digests = (hashlib.blake2b(name, digest_size=8, key=key).digest() for name in names.to_pylist())
        return pa.array([int.from_bytes(digest, "big") for digest in digests], pa.uint64())

    db.create_function("draw", draw, ["BLOB"], "UBIGINT", type=PythonUDFType.ARROW)
    db.execute(f"""
        CREATE MACRO cut(place, size) AS CASE  -- halves are rounded to even, as Python does
            WHEN place < round_even('{validation!r}'::DOUBLE * size, 0) THEN 1
            WHEN place < round_even('{validation + evaluation!r}'::DOUBLE * size, 0) THEN 2 ELSE 0 END
    """)
    by = options.split_by if options.split_by != "auto" else _drawn_by(db)
    if by == "class":
        db.execute("""
            CREATE TABLE drawn AS SELECT class, cut(rank() OVER (ORDER BY digest) - 1, count(*) OVER ()) AS split FROM (
                SELECT class, draw(label) AS digest FROM classes SEMI JOIN (FROM keys WHERE given = 0) USING (class)
            );
            CREATE VIEW dealt AS SELECT keys.*, keys.rowid AS row, CASE given WHEN 0 THEN split ELSE given END AS split
                FROM keys LEFT JOIN drawn USING (class);
        """)
    else:
        _draw_examples(db)
    for code, name in enumerate(SPLITS):
        db.execute(f"""
            CREATE TABLE {name} AS SELECT class, content, unit, part, "offset", length, bits, side,
                CASE WHEN side IS NOT NULL THEN regexp_replace(decode(id), '/[^/]*$', '') END AS pair
                FROM dealt WHERE split = {code} ORDER BY row
        """)
    names = ("validation_share", "eval_share")
    return SplitRule(by=by, seed=options.seed, **{name: float(getattr(options, name)) for name in names})


def _drawn_by(db: duckdb.DuckDBPyConnection) -> str:
    [(to_train, held_out, both)] = db.execute("""
        SELECT count(*) FILTER (free), count(*) FILTER (held), count(*) FILTER (free AND held)
        FROM (SELECT bool_or(given = 0) AS free, bool_or(given > 0) AS held FROM keys GROUP BY class)
    """).fetchall()
    if held_out:
        return "example" if 2 * both > held_out else "class"
    return "class" if to_train >= SPLIT_BY_CLASS_FROM else "example"


def _draw_examples(db: duckdb.DuckDBPyConnection) -> None:
    """leader: the first row of those that copies and groups join with a row. All go where that is drawn to."""
    db.execute("""
        CREATE TABLE free AS SELECT keys.rowid AS row, class, draw(id) AS digest, coalesce(first, keys.rowid) AS first,
            unit FROM keys LEFT JOIN (SELECT content, min(rowid) AS first FROM keys WHERE given = 0 GROUP BY content)
            USING (content) WHERE given = 0
    """)
    edges = db.execute("SELECT DISTINCT first, unit FROM free WHERE unit IS NOT NULL").fetchnumpy()
    row, leader = leaders(edges["first"], edges["unit"])
    db.register("joined", pa.table({"first": row, "leader": leader}))
    db.execute("""
        CREATE TABLE led AS SELECT row, class, digest, coalesce(leader, first) AS leader
            FROM free LEFT JOIN joined USING (first);
        CREATE TABLE drawn AS SELECT led.row, led.leader, cut(
                rank() OVER (PARTITION BY led.class ORDER BY own.digest) - 1, count(*) OVER (PARTITION BY led.class)
            ) AS split FROM led JOIN led AS own ON own.row = led.leader;
        CREATE VIEW dealt AS SELECT keys.*, keys.rowid AS row, coalesce(own.split, given) AS split
            FROM keys LEFT JOIN drawn ON drawn.row = keys.rowid LEFT JOIN drawn AS own ON own.row = drawn.leader;
    """)


def leaders(row: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows, each once, and the lowest row that units join each with, directly or through others: int64 [n].

    row, unit: int64 [edges], a row and a unit that it is in.
    """
    rows, node = np.unique(row, return_inverse=True)
    size = len(rows) + int(unit.max(initial=0)) + 1
    edges = coo_array((np.ones(len(row), np.int8), (node, unit + len(rows))), shape=(size, size))
    _, part = connected_components(edges, directed=False)
    _, first, which = np.unique(part[: len(rows)], return_index=True, return_inverse=True)
    return rows, rows[first[which]]


def count_leaks(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """By held-out split, how many of its rows have a copy, or a row of their group, in the train split."""
    known = "content IN (SELECT content FROM train) OR unit IN (SELECT unit FROM train)"
    return {name: db.execute(f"SELECT count(*) FROM {name} WHERE {known}").fetchall()[0][0] for name in SPLITS[1:]}


def _of_split(name: str) -> str:
    """A subquery: a split's rows, with what SHARD_KEYS holds, and the class of the row that `content` names."""
    return f"""(
        SELECT rows.rowid AS row, part, "offset", length, coalesce(bits, -1) AS bits, rows.class,
            coalesce(first, rows.rowid) AS content, coalesce(code, -1) AS "group", firsts.class AS class_of_first
        FROM {name} AS rows LEFT JOIN (
            SELECT content, min(rowid) AS first, arg_min(class, rowid) AS class FROM {name} GROUP BY content
        ) AS firsts USING (content) LEFT JOIN (
            SELECT unit, row_number() OVER (ORDER BY min(rowid)) - 1 AS code FROM {name} WHERE unit IS NOT NULL
            GROUP BY unit
        ) USING (unit)
    )"""


def count_rows(db: duckdb.DuckDBPyConnection, name: str) -> dict[str, int]:
    """Of a split: rows, copies and label_conflicts, as SplitManifest has them."""
    [counts] = db.execute(f"""
        SELECT count(*), count(*) FILTER (content != row), count(*) FILTER (class != class_of_first)
        FROM {_of_split(name)}
    """).fetchall()
    return dict(zip(("rows", "copies", "label_conflicts"), counts, strict=True))


def labels(db: duckdb.DuckDBPyConnection, name: str) -> Iterator[str]:
    """A split's labels, in order."""
    for (label,) in _stream(db, f"SELECT label FROM classes SEMI JOIN {name} USING (class) ORDER BY class"):
        yield label.decode()


def first_rows(db: duckdb.DuckDBPyConnection, name: str) -> np.ndarray:
    """int64 [classes + 1]: where each class of a split begins, and how many rows the split has."""
    first = db.execute(f"SELECT min(rowid) AS first FROM {name} GROUP BY class ORDER BY first").fetchnumpy()["first"]
    return np.append(first, db.execute(f"SELECT count(*) FROM {name}").fetchall()[0]).astype(np.int64)


def given_triplets(db: duckdb.DuckDBPyConnection) -> np.ndarray:
    """int64 [g, 3], ascending: each anchor of a pair with each positive and each negative of that pair, as row numbers
    of the train split. A negative that has the anchor's label is left out."""
    found = db.execute("""
        SELECT a.rowid AS anchor, p.rowid AS positive, n.rowid AS negative FROM train AS a
        JOIN train AS p USING (pair) JOIN train AS n USING (pair)
        WHERE a.side = 'anchor' AND p.side = 'positive' AND n.side = 'negative' AND a.class != n.class ORDER BY ALL
    """)
    return np.stack([*found.fetchnumpy().values()], axis=1).astype(np.int64)


def shards(db: duckdb.DuckDBPyConnection, name: str, shard_rows: int, shard_bytes: int) -> Iterator[np.ndarray]:
    """A split's rows, SHARD_KEYS [n], shard by shard."""
    columns = 'part, "offset", length, bits, content, "group"'
    found = pa.RecordBatchReader.from_stream(db.sql(f"SELECT {columns} FROM {_of_split(name)} ORDER BY row"))
    batches = (np.rec.fromarrays([column.to_numpy() for column in batch], SHARD_KEYS) for batch in found)
    return cut_shards(batches, shard_rows, shard_bytes)


def cut_shards(batches: Iterable[np.ndarray], shard_rows: int, shard_bytes: int) -> Iterator[np.ndarray]:
    """Ordered SHARD_KEYS in shards of at most `shard_rows` rows and, but for a single row, `shard_bytes` bytes."""
    left = np.empty(0, SHARD_KEYS)
    for batch in itertools.chain(batches, [None]):
        left = left if batch is None else np.concatenate([left, batch])
        while len(left) >= (1 if batch is None else shard_rows):
            fit = int(np.searchsorted(np.cumsum(left["length"][:shard_rows]), shard_bytes, "right"))
            yield left[: max(1, fit)]
            left = left[max(1, fit) :]


def _stream(db: duckdb.DuckDBPyConnection, query: str) -> Iterator[tuple[Any, ...]]:
    found = db.execute(query)
    while rows := found.fetchmany(BATCH_ROWS):
        yield from rows
