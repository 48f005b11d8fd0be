"""What lies nearest to a row, by the round's embeddings."""

import math

import numpy as np

from pipeline.embedding.store import EmbeddingStore
from pipeline.reporting.sample import Pairs, classes_of

NEIGHBOURS = 10
NEAR = 3  # of a class, for the distance to it
LOOKED_AT = 4096  # rows whose nearest others are looked up where packs are spread
NEIGHBOUR_ROWS = 1 << 18  # among which they are looked up
QUERIES = 64  # at a time: 64 MB of distances
Neighbours = tuple[np.ndarray, np.ndarray, np.ndarray]


def neighbours(store: EmbeddingStore, rows: np.ndarray, others: bool = False) -> Neighbours:
    """What lies nearest to rows of the corpus, which ascend and are embedded. others: of other labels only.

    Of a split larger than NEIGHBOUR_ROWS every second (third ...) row is looked at, which keeps the classes' shares.

    Returns:
      int64 [n, NEIGHBOURS], the nearest rows in order; float32 of the same shape, their distances; float32 [n, NEAR],
      the distances of the nearest rows of the same label. Infinite where there are fewer.
    """
    split, rows = store.split, store.split.row_of(rows)
    looked_at = np.arange(0, split.rows, math.ceil(split.rows / NEIGHBOUR_ROWS))
    points, label = store.embeddings(looked_at), split.class_of(looked_at)
    found = []
    for queries in np.array_split(rows, math.ceil(len(rows) / QUERIES)):
        distance = 2 - 2 * (store.embeddings(queries) @ points.T)
        distance[queries[:, None] == looked_at] = np.inf  # itself
        classmates = split.class_of(queries)[:, None] == label
        d_own, _ = _smallest(np.where(classmates, distance, np.inf), NEAR)
        if others:
            distance[classmates] = np.inf
        d_any, where = _smallest(distance, NEIGHBOURS)
        found.append((split.number_of(looked_at[where]), d_any, d_own))
    nearest, d_any, d_own = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return nearest, d_any, d_own


def _smallest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` smallest of each row in order, and their columns."""
    where = np.argpartition(values, min(count, values.shape[1]) - 1, axis=1)[:, :count]
    smallest = np.take_along_axis(values, where, axis=1)
    order = np.argsort(smallest, axis=1)
    return np.take_along_axis(smallest, order, axis=1), np.take_along_axis(where, order, axis=1)


def nearest_others(store: EmbeddingStore, seed: int) -> Pairs:
    """LOOKED_AT rows drawn at random, each as the anchor of the NEAR nearest rows of other classes.

    What triplets tell of classes and labels is told by this where packs keep near classes apart (`--packs spread`).
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(store.split.rows)[:LOOKED_AT])
    rows = store.split.number_of(drawn)
    nearest, distance, _ = neighbours(store, rows, others=True)
    row, place = np.nonzero(np.isfinite(distance[:, :NEAR]))  # fewer in a tiny corpus
    anchor, negative = rows[row], nearest[row, place]
    classes = classes_of(store.whole, anchor, negative)
    return Pairs(anchor=anchor, negative=negative, classes=classes, d_an=distance[row, place], rows=len(rows))
