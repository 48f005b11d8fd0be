"""The keys of all examples: their order, their common shape, which are held out, copies, and where shards are cut.

Pure functions of a table with a row an example, KEYS. No payload is here, only its digest and its length. A row with
a reason stands for something that is no example; of such a row there is only the id, which says where it was.
"""

import collections
import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.corpus.manifest import DTYPES, SPLITS, Feature, SplitManifest, SplitRule
from pipeline.corpus.options import IngestOptions
from pipeline.corpus.sources.fields import PAIRS
from pipeline.corpus.sources.source import Rejected
from pipeline.triplets.draws import draw_key

SPLIT_BY_CLASS_FROM = 20  # classes
KEYS = pa.schema(
    [
        ("label", pa.binary()), ("id", pa.binary()), ("sha256", pa.binary()), ("group", pa.binary()),
        ("split", pa.string()), ("role", pa.string()), ("shape", pa.list_(pa.int64())), ("part", pa.int64()),
        ("offset", pa.int64()), ("length", pa.int64()), ("bits", pa.int64()), ("side", pa.string()),
        ("reason", pa.string()),
    ]
)  # fmt: skip


def order_rows(staged: pa.Table) -> tuple[pa.Table, list[Rejected]]:
    """The examples ordered by (label, id), in byte order; and what is rejected, as repeated ids are."""
    rejected = _rejected(staged.filter(pc.is_valid(staged["reason"])))
    keys = staged.filter(pc.is_null(staged["reason"]))
    keys = keys.sort_by([("id", "ascending"), ("part", "ascending"), ("offset", "ascending")])
    ids = keys["id"].combine_chunks()
    again = pa.concat_arrays([pa.array([False]), pc.equal(ids[1:], ids[:-1])])[: len(ids)]
    rejected += _rejected(keys.filter(again), lambda row: "the id was there before; the first is kept")
    return keys.filter(pc.invert(again)).sort_by([("label", "ascending"), ("id", "ascending")]), rejected


def _rejected(rows: pa.Table, reason: Callable[[dict[str, Any]], str] = lambda row: row["reason"]) -> list[Rejected]:
    return [Rejected(source=row["id"].decode(), reason=reason(row)) for row in rows.to_pylist()]


def alike(labels: Iterable[str]) -> list[list[str]]:
    """Those that differ only in case, spaces, Unicode's form, or as 0 and 0.0 do: they may be meant to be one."""
    found = collections.defaultdict(list)
    for label in sorted(labels):
        plain = "".join(unicodedata.normalize("NFKC", label).casefold().split())
        found[re.sub(r"^(-?\d+)\.0+$", r"\1", plain)].append(label)
    return [names for names in found.values() if len(names) > 1]


def common_shape(keys: pa.Table, kind: str) -> tuple[Feature, pa.Table, list[Rejected]]:
    """The payload of one example or more, with None where images' sizes differ; those that have it; and the others.

    The others are vectors of another length than most.
    """
    if kind == "text":
        return Feature(kind=kind, shape=(), dtype=DTYPES[kind]), keys, []
    shapes = [tuple(shape) for shape in keys["shape"].to_pylist()]
    shape: tuple[int | None, ...]
    if kind == "image":
        sizes = {found[:2] for found in shapes}
        size = sizes.pop() if len(sizes) == 1 else (None, None)
        shape = (*size, max(found[2] for found in shapes))
        return Feature(kind=kind, shape=shape, dtype=DTYPES[kind]), keys, []
    [(shape, _)] = collections.Counter(shapes).most_common(1)
    fits = pa.array([found == shape for found in shapes])
    others = _rejected(
        keys.filter(pc.invert(fits)), lambda row: f"vector of {row['shape'][0]} numbers, most have {shape[0]}"
    )
    return Feature(kind=kind, shape=shape, dtype=DTYPES[kind]), keys.filter(fits), others


def assign_splits(keys: pa.Table, options: IngestOptions) -> tuple[np.ndarray, SplitRule]:
    """int8 [rows], positions in SPLITS; and by what rows were drawn.

    What the source puts into a split stays there. Of the others, those splits that it gave nothing for are drawn: by
    class (unseen classes), or by example, class by class, so that each split has every class. Unless told, as the split
    that is given: its classes are those to train on, or others; if none is, by class from 20 classes up. The draw is a
    hash of the seed and the label or id. By example, what copies and groups join stays together: a held-out copy would
    be no test.
    """
    given = given_splits(keys)
    split = np.where(given < 0, 0, given).astype(np.int8)
    rest = np.flatnonzero(split == 0)
    told = {SPLITS[code] for code in np.unique(given[given > 0])}
    shares = {name: 0.0 if name in told else getattr(options, f"{name}_share") for name in SPLITS[1:]}
    labels = np.array(keys["label"].to_pylist(), object)
    by = options.split_by if options.split_by != "auto" else _drawn_by(labels, split)
    draw = str(draw_key(options.seed, 0, "split")).encode()

    def cut(names: list[bytes], size: int) -> np.ndarray:
        digests = np.array([hashlib.blake2b(name, digest_size=8, key=draw).digest() for name in names], "S8")
        rank = np.searchsorted(np.sort(digests), digests)  # equal names, equal ranks
        validation = round(shares["validation"] * size)
        held_out = round((shares["validation"] + shares["eval"]) * size)
        return np.where(rank < validation, 1, np.where(rank < held_out, 2, 0)).astype(np.int8)

    if by == "class":
        classes, code = np.unique(labels[rest], return_inverse=True)
        split[rest] = cut(classes.tolist(), len(classes))[code]
    else:
        ids, leader = keys["id"].take(pa.array(rest)).to_pylist(), _leaders(keys.take(pa.array(rest)))
        drawn = np.zeros(len(rest), np.int8)
        first = np.flatnonzero(np.append(True, labels[rest][1:] != labels[rest][:-1])) if len(rest) else rest
        for rows in np.split(np.arange(len(rest)), first[1:]):
            drawn[rows] = cut([ids[row] for row in leader[rows]], len(rows))
        split[rest] = drawn[leader]  # a unit that several classes share goes where its first row does
    names = ("validation_share", "eval_share")
    return split, SplitRule(by=by, seed=options.seed, **{name: float(getattr(options, name)) for name in names})


def given_splits(keys: pa.Table) -> np.ndarray:
    """int8 [rows]: the split that a row's source puts it into, as its position in SPLITS; -1 for none."""
    return pc.index_in(keys["split"], pa.array(SPLITS)).fill_null(-1).to_numpy().astype(np.int8)


def _drawn_by(labels: np.ndarray, split: np.ndarray) -> str:
    to_train, held_out = set(labels[split == 0]), set(labels[split > 0])
    if held_out:
        return "example" if 2 * len(held_out & to_train) > len(held_out) else "class"
    return "class" if len(to_train) >= SPLIT_BY_CLASS_FROM else "example"


def _leaders(keys: pa.Table) -> np.ndarray:
    """int64 [rows]: the first row of those that copies and groups join with a row, directly or through others."""
    content, group = (_codes(keys[name]) for name in ("sha256", "group"))
    grouped = group >= 0
    nodes = int(content.max(initial=-1)) + 1
    edges = (np.ones(grouped.sum()), (content[grouped], group[grouped] + nodes))
    size = nodes + int(group.max(initial=-1)) + 1
    _, unit = connected_components(coo_array(edges, shape=(size, size)), directed=False)
    _, first, which = np.unique(unit[content], return_index=True, return_inverse=True)
    leader: np.ndarray = first[which]
    return leader


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """int64 [rows]: equal where the values are; -1 for null."""
    codes: np.ndarray = column.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
    return codes


def count_leaks(keys: pa.Table, split: np.ndarray) -> dict[str, int]:
    """By held-out split, how many of its rows have a copy, or a row of their group, in the train split."""
    train = keys.filter(pa.array(split == 0))
    found = {}
    for code, name in enumerate(SPLITS[1:], 1):
        held_out = keys.filter(pa.array(split == code))
        known = [
            pc.and_(pc.is_valid(held_out[key]), pc.is_in(held_out[key], train[key].combine_chunks()))
            for key in ("sha256", "group")
        ]
        found[name] = pc.sum(pc.or_(*known)).as_py() or 0
    return found


def describe_split(keys: pa.Table) -> tuple[pa.Table, SplitManifest]:
    """Adds codes of content and group to a split's ordered keys, and describes the split, without its shards.

    content: the first row with the same payload; group: a number, -1 without a group.
    """
    label = np.array(keys["label"].to_pylist(), object)
    _, first, which = np.unique(np.array(keys["sha256"].to_pylist(), "S32"), return_index=True, return_inverse=True)
    content = first[which]
    group = pa.array(_codes(keys["group"]))
    keys = keys.append_column("content", pa.array(content, pa.int64())).append_column("group_code", group)
    labels, first_rows = np.unique(label, return_index=True)
    return keys, SplitManifest(
        rows=len(keys),
        labels=[name.decode() for name in labels],
        first_rows=[*first_rows.tolist(), len(keys)],
        copies=int((content != np.arange(len(keys))).sum()),
        label_conflicts=int((label != label[content]).sum()),
        shards=[],
    )


def given_triplets(train: pa.Table) -> np.ndarray:
    """int64 [g, 3], ascending: each anchor of a pair with each positive and each negative of that pair, as row numbers.

    train: the train split's ordered keys. A negative that has the anchor's label is left out.
    """
    row = np.flatnonzero(train["side"].is_valid())
    keys = train.take(pa.array(row))
    pair = _codes(pc.replace_substring_regex(keys["id"], "/[^/]*$", ""))
    rows = pa.table({"pair": pair, "label": _codes(keys["label"]), "row": row})
    sides = [
        rows.filter(pc.equal(keys["side"], side)).rename_columns(["pair", f"label of {side}", side]) for side in PAIRS
    ]
    found = functools.reduce(lambda left, right: left.join(right, "pair", join_type="inner"), sides)
    found = found.filter(pc.not_equal(found["label of anchor"], found["label of negative"]))
    found = found.sort_by([(side, "ascending") for side in PAIRS])
    return np.stack([found[side].to_numpy() for side in PAIRS], axis=1)


def cut_shards(keys: pa.Table, shard_rows: int, shard_bytes: int) -> list[pa.Table]:
    """Ordered keys in shards of at most `shard_rows` rows and, but for a single row, `shard_bytes` bytes."""
    begins, size = [0], 0
    for row, length in enumerate(keys["length"].to_pylist()):
        if row > begins[-1] and (row - begins[-1] == shard_rows or size + length > shard_bytes):
            begins.append(row)
            size = 0
        size += length
    ends = [*begins[1:], len(keys)]
    return [keys.slice(begin, end - begin) for begin, end in zip(begins, ends, strict=True) if end > begin]
