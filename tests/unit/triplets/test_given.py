"""Which given triplets are valid, against loops over every row."""

import numpy as np
import oracle
from blocks import BLOCKS, RULES
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.triplets.given import valid_triplets
from pipeline.triplets.rule import KINDS


@given(rule=RULES, data=BLOCKS, seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_those_are_valid_that_the_definitions_allow(rule, data, seed):
    label, block = data
    a, p, n = np.random.default_rng(seed).integers(0, len(label), (3, 300))
    triplets = np.stack([a, p, n])[:, (a != p) & (label[a] == label[p]) & (label[a] != label[n])]
    d = oracle.distance(block.embedding)
    expected = [
        (a, p, n, kind)
        for a, p, n in triplets.T.tolist()
        for kind in KINDS
        if kind in dict(rule.shares)
        and p in oracle.positives(a, label, block.content)
        and n in oracle.negatives(kind, rule, d, a, p, label, block.content, block.group)
    ]
    found = valid_triplets(rule, *map(block.take, triplets))
    columns = found.anchor, found.positive, found.negative, [KINDS[kind] for kind in found.kind]
    assert list(zip(*columns, strict=True)) == expected
    np.testing.assert_array_equal(found.d_ap, d[found.anchor, found.positive].astype(np.float32))
    np.testing.assert_array_equal(found.d_an, d[found.anchor, found.negative].astype(np.float32))
