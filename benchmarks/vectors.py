"""Corpora in memory: what benchmarks of selection look at. Without Beam and TensorFlow."""

import numpy as np

from pipeline.triplets.columns import column_block_of, column_blocks
from pipeline.triplets.pairs import draw_positives, make_pairs
from pipeline.triplets.rows import Block, Found, to_grid
from pipeline.triplets.rule import Rule
from pipeline.triplets.scan import choose, scan_nearest, scan_random

THREADS = 2
BOTH = (("semi-hard", 1.0), ("hard", 1.0))


def normalise(vectors: np.ndarray) -> np.ndarray:
    return to_grid(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def clustered(rows: int, dim: int, classes: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(labels in order, embeddings): unit vectors round a random centre a class."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) * classes // rows
    centres = normalise(rng.standard_normal((classes, dim)).astype(np.float32))
    spread = rng.standard_normal((rows, dim), dtype=np.float32) * np.float32(noise / dim**0.5)
    return label, normalise(centres[label] + spread)


class Corpus:
    """A corpus in memory: pairs of some anchors, and the columns dealt to blocks."""

    def __init__(
        self, rule: Rule, label: np.ndarray, embedding: np.ndarray, anchors: np.ndarray | None = None,
        content: np.ndarray | None = None, group: np.ndarray | None = None,
    ):  # fmt: skip
        rows = np.arange(len(label))
        anchors = rows if anchors is None else anchors
        whole = Block(row=rows, embedding=embedding, content=content, group=group)
        own = np.stack([np.searchsorted(label, label[anchors], side) for side in ("left", "right")], axis=1)
        positive = draw_positives(rule, anchors, own, None if content is None else lambda lo, hi: content[lo:hi])
        self.rule, self.embedding = rule, embedding
        self.pairs = make_pairs(rule, whole.take(anchors), own, positive, embedding[np.maximum(positive, 0)])
        blocks = column_blocks(len(label))
        dealt = np.argsort(column_block_of(rule, rows, blocks), kind="stable")
        counts = np.bincount(column_block_of(rule, rows, blocks), minlength=blocks)
        self.columns = [whole.take(np.sort(part)) for part in np.split(dealt, np.cumsum(counts)[:-1])]

    def scan(self, threads: int = THREADS) -> Found:
        if self.rule.pick == "nearest":
            return scan_nearest(self.rule, self.pairs, self.columns, threads)
        column = self.columns.__getitem__
        return scan_random(self.rule, self.pairs, 0, column, len(self.columns), threads)

    def select(self) -> dict[str, int]:
        return choose(self.rule, self.pairs, self.scan())[1]
