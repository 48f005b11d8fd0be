"""The keys of all examples: their order, their common shape, which are held out, copies, and where shards are cut.

Pure functions of a table with a row an example, KEYS. No payload is here, only its digest and its length. A row with
a reason stands for something that is no example; of such a row there is only the id, which says where it was.
"""

import collections
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.manifest import Feature, SplitManifest, SplitRule
from pipeline.corpus.options import IngestOptions
from pipeline.corpus.sources.source import Rejected
from pipeline.triplets.draws import draw_key

SPLIT_BY_CLASS_FROM = 20  # classes
DTYPES = {"image": "uint8", "text": "string", "vector": "float32"}
KEYS = pa.schema(
    [
        ("label", pa.binary()), ("id", pa.binary()), ("sha256", pa.binary()), ("group", pa.binary()),
        ("shape", pa.list_(pa.int64())), ("part", pa.int64()), ("offset", pa.int64()), ("length", pa.int64()),
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


def common_shape(keys: pa.Table, kind: str) -> tuple[Feature, pa.Table, list[Rejected]]:
    """The payload of one example or more, with None where images' sizes differ; those that have it; and the others.

    The others are vectors of another length than most.
    """
    shapes = [tuple(shape) for shape in keys["shape"].to_pylist()]
    shape: tuple[int | None, ...]
    if kind == "image":
        sizes = {found[:2] for found in shapes}
        size = sizes.pop() if len(sizes) == 1 else (None, None)
        shape = (*size, max(found[2] for found in shapes))
        return Feature(kind=kind, shape=shape, dtype=DTYPES[kind]), keys, []
    [(shape, _)] = collections.Counter(shapes).most_common(1)  # () of every text
    fits = pa.array([found == shape for found in shapes])
    others = _rejected(
        keys.filter(pc.invert(fits)), lambda row: f"vector of {row['shape'][0]} numbers, most have {shape[0]}"
    )
    return Feature(kind=kind, shape=shape, dtype=DTYPES[kind]), keys.filter(fits), others


def assign_splits(keys: pa.Table, options: IngestOptions) -> tuple[np.ndarray, SplitRule]:
    """int8 [rows], positions in SPLITS; and by what the corpus was split.

    By class (unseen classes) from 20 classes up; below, by example, class by class, so that each split has
    every class. The draw is a hash of the seed and the label or id. Within a class, copies of a payload and rows
    of a group stay together: a held-out copy would be no test.
    """
    labels, first, code = np.unique(np.array(keys["label"].to_pylist(), object), return_index=True, return_inverse=True)
    draw = str(draw_key(options.seed, 0, "split")).encode()

    def ranks(names: list[bytes]) -> np.ndarray:
        digests = np.array([hashlib.blake2b(name, digest_size=8, key=draw).digest() for name in names], "S8")
        return np.searchsorted(np.sort(digests), digests)  # equal names, equal ranks

    def cut(rank: np.ndarray, size: int) -> np.ndarray:
        validation = round(options.validation_share * size)
        held_out = round((options.validation_share + options.eval_share) * size)
        return np.where(rank < validation, 1, np.where(rank < held_out, 2, 0)).astype(np.int8)

    shares = {"validation_share": float(options.validation_share), "eval_share": float(options.eval_share)}
    if len(labels) >= SPLIT_BY_CLASS_FROM:
        return cut(ranks(labels.tolist()), len(labels))[code], SplitRule(by="class", seed=options.seed, **shares)
    split = np.zeros(len(keys), np.int8)
    ids, groups, contents = (keys[name].to_pylist() for name in ("id", "group", "sha256"))
    units = [group or content for group, content in zip(groups, contents, strict=True)]
    for start, stop in zip(first, [*first[1:], len(keys)], strict=True):
        leader = {unit: row for row, unit in reversed(list(enumerate(units[start:stop])))}
        names = [ids[start + leader[unit]] for unit in units[start:stop]]  # each row drawn by its unit's first id
        split[start:stop] = cut(ranks(names), stop - start)
    return split, SplitRule(by="example", seed=options.seed, **shares)


def describe_split(keys: pa.Table) -> tuple[pa.Table, SplitManifest]:
    """Adds codes of content and group to a split's ordered keys, and describes the split, without its shards.

    content: the first row with the same payload; group: a number, -1 without a group.
    """
    label = np.array(keys["label"].to_pylist(), object)
    _, first, which = np.unique(np.array(keys["sha256"].to_pylist(), "S32"), return_index=True, return_inverse=True)
    content = first[which]
    group = keys["group"].combine_chunks().dictionary_encode().indices.fill_null(-1).cast(pa.int64())
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
