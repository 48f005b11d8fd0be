"""Which positives are drawn, and which kind of negative a pair tries first."""

import numpy as np
from blocks import labelled_block, own_ranges, pairs_of, select
from scipy.stats import chisquare

from pipeline.triplets.pairs import draw_positives
from pipeline.triplets.rule import KINDS, Rule


def test_positives_are_uniform():
    label, block = labelled_block(seed=3, rows=60, classes=5)
    own = own_ranges(label)
    seen = np.zeros((60, 60))
    for seed in range(2000):
        positive = draw_positives(Rule(seed=seed, positives=2), block.row, own)
        for k in range(2):
            seen[np.arange(60), positive[:, k]] += positive[:, k] >= 0
    for a in range(60):
        others = [p for p in range(own[a, 0], own[a, 1]) if p != a]
        if len(others) > 2:
            assert chisquare(seen[a, others]).pvalue > 1e-6


def test_first_kinds_follow_the_shares():
    label, block = labelled_block(seed=2, rows=4000, classes=40)
    pairs = pairs_of(Rule(shares=(("hard", 3.0), ("semi-hard", 1.0)), positives=2), label, block)
    assert abs((pairs.first_kind == KINDS.index("hard")).mean() - 0.75) < 0.02


def test_a_new_round_draws_anew():
    label, block = labelled_block(seed=2, rows=400, classes=4)
    *_, one, _ = select(Rule(round=0, margin=1.0), label, block)
    *_, two, _ = select(Rule(round=1, margin=1.0), label, block)
    assert (one.positive[:100] != two.positive[:100]).mean() > 0.9
