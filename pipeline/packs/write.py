"""Packs to TFRecords: the triplets of each, its rows once, and what they carry."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.embedding.store import EmbeddingStore
from pipeline.files import tfrecords
from pipeline.files.manifests import Shard
from pipeline.packs.packs import Packs
from pipeline.packs.payload import Payload
from pipeline.triplets.rows import Triplets
from pipeline.triplets.rule import KINDS, Rule
from pipeline.triplets.within import select_within

SCOPES = ("corpus", "pack")  # a triplet's scope is stored as its position here
SCOPE_KINDS = [f"{scope}/{kind}" for scope in SCOPES for kind in KINDS]
CHUNK_BYTES = 64 << 20


def write_packs(
    path: Path,
    rule: Rule,
    packs: Packs,
    lone: bool,
    store: EmbeddingStore,
    payload: Payload,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Shard, Counter[str]]:
    """Writes a shard of packs, each an Example; see `pipeline.mining.manifest.read_packs`.

    Args:
      rule: of the triplets inside packs. lone: a pack is its corpus triplet and nothing else.
      chunk_bytes: of payload and embeddings held at a time, if a pack has no more.
    Returns:
      The manifest's entry, and counts: `packs`, `rows`, `skipped` and `guarded` pairs, `SCOPE/KIND` triplets.
    """
    counts = Counter[str](packs=len(packs), rows=len(packs.rows))

    def records() -> Iterator[bytes]:
        sizes = payload.split.codes("length", packs.rows) + (0 if lone else 4 * store.dim)
        for first, last in _chunks(sizes, packs.starts, chunk_bytes):
            chunk = packs.take(first, last)
            payload.load(np.unique(chunk.rows))
            columns, ends = _lone(chunk) if lone else _within(rule, chunk, store, counts)
            by_kind = np.bincount(columns["scope"] * len(KINDS) + columns["kind"], minlength=len(SCOPE_KINDS))
            counts.update(dict(zip(SCOPE_KINDS, by_kind.tolist(), strict=True)))
            for pack in range(len(chunk)):
                rows = chunk.rows[slice(*chunk.starts[[pack, pack + 1]])]
                triplets = {name: column[ends[pack] : ends[pack + 1]] for name, column in columns.items()}
                yield tfrecords.make_example({"row": store.split.number_of(rows), **triplets, **payload.of(rows)})

    shard = tfrecords.write_records(path, records())
    return shard, counts


Columns = dict[str, np.ndarray]  # anchor, positive, negative (positions in their pack), kind, scope, d_ap, d_an


def _lone(packs: Packs) -> tuple[Columns, np.ndarray]:
    """The triplets of packs that hold one each, and where each pack's begin."""
    triplets: Triplets = packs.triplets
    none = np.zeros(len(triplets), np.int64)
    places = {"anchor": none, "positive": none + 1, "negative": none + 2, "kind": triplets.kind, "scope": none}
    return {**places, "d_ap": triplets.d_ap, "d_an": triplets.d_an}, packs.triplet_starts


def _within(rule: Rule, packs: Packs, store: EmbeddingStore, counts: Counter[str]) -> tuple[Columns, np.ndarray]:
    """The triplets of packs, those of the corpus first, and where each pack's begin."""
    distinct, index = np.unique(packs.rows, return_inverse=True)
    columns, ends, left_out = select_within(
        rule, store.block(distinct).take(index), store.split.class_of(packs.rows), packs.starts, packs.triplets,
        packs.triplet_starts, packs.names,
    )  # fmt: skip
    counts.update(left_out)
    return columns, ends


def _chunks(sizes: np.ndarray, starts: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Runs of packs (first, last + 1) whose rows' sizes sum to `most` or less, one pack at the least."""
    total = np.concatenate([[0], np.cumsum(sizes)])[starts]
    first = 0
    while first < len(starts) - 1:
        last = max(first + 1, int(np.searchsorted(total, total[first] + most, "right")) - 1)
        yield first, last
        first = last
