"""Small corpora in memory, rules, and all that selection does with them: what tests of pipeline/triplets look at."""

import numpy as np
from hypothesis import strategies as st

from pipeline.triplets.columns import column_block_of
from pipeline.triplets.pairs import draw_positives, make_pairs
from pipeline.triplets.rows import Block, to_grid
from pipeline.triplets.rule import Rule
from pipeline.triplets.scan import choose, scan_nearest, scan_random


def grid_vectors(rng, rows, dim):
    """L2-normalised vectors on the stored grid."""
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    return to_grid(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def small_integers(rng, rows, dim):
    """Vectors with many ties and many copies; not normalised, which selection does not need."""
    return rng.integers(-2, 3, (rows, dim)).astype(np.float32) / 2


def labelled_block(seed, rows, classes, integers=False, groups=False):
    """(label, Block), with content codes; integers: of `small_integers`."""
    rng = np.random.default_rng(seed)
    label = np.sort(rng.integers(0, classes, rows))
    embedding = (small_integers if integers else grid_vectors)(rng, rows, 3)
    _, content = np.unique(embedding, axis=0, return_inverse=True)
    group = rng.integers(-1, 4, rows) if groups else None
    return label, Block(row=np.arange(rows), embedding=embedding, content=content.ravel().astype(np.int64), group=group)


def own_ranges(label):
    return np.stack([np.searchsorted(label, label, "left"), np.searchsorted(label, label, "right")], axis=1)


def pairs_of(rule, label, block):
    own = own_ranges(label)
    content_of = None if block.content is None else (lambda lo, hi: block.content[lo:hi])
    positive = draw_positives(rule, block.row, own, content_of)
    return make_pairs(rule, block, own, positive, block.embedding[np.maximum(positive, 0)])


def dealt(rule, block, blocks):
    number = column_block_of(rule, block.row, blocks)
    return [block.take(np.flatnonzero(number == b)) for b in range(blocks)]


def select(rule, label, block, blocks=1, threads=1):
    """(Pairs, Found, Triplets, counts), every row an anchor."""
    pairs = pairs_of(rule, label, block)
    columns = dealt(rule, block, blocks)
    if rule.pick == "random":
        found = scan_random(rule, pairs, 0, columns.__getitem__, blocks, threads)
    else:
        found = scan_nearest(rule, pairs, columns, threads)
    return pairs, found, *choose(rule, pairs, found)


RULES = st.builds(
    Rule,
    shares=st.sampled_from(
        [
            (("semi-hard", 1.0),),
            (("hard", 1.0),),
            (("semi-hard", 2.0), ("hard", 1.0)),
            (("hard", 1.0), ("semi-hard", 3.0)),
        ]
    ),
    pick=st.sampled_from(["random", "nearest"]),
    margin=st.sampled_from([0.2, 0.25, 1.0]),
    positives=st.integers(1, 4),
    seed=st.integers(0, 5),
    min_negative_distance=st.sampled_from([0.0, 0.5]),
    min_negative_ratio=st.sampled_from([0.0, 0.95, 1.5]),
)
BLOCKS = st.builds(
    labelled_block,
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 60),
    classes=st.integers(1, 12),
    integers=st.booleans(),
    groups=st.booleans(),
)
