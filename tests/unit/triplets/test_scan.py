"""Whole-corpus selection against loops over every row, whatever the tiles, threads, blocks and order of merging."""

import itertools

import numpy as np
import oracle
from blocks import BLOCKS, RULES, dealt, labelled_block, own_ranges, select
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from pipeline.triplets.columns import ANCHOR_BLOCK
from pipeline.triplets.pairs import make_pairs
from pipeline.triplets.rows import Found
from pipeline.triplets.rule import KINDS, Rule
from pipeline.triplets.scan import merge, scan_nearest, scan_random


@given(rule=RULES, data=BLOCKS, blocks=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_equals_a_loop_over_every_row(rule, data, blocks):
    label, block = data
    pairs, _, triplets, counts = select(rule, label, block, blocks)
    d = oracle.distance(block.embedding)
    kinds = [kind for kind, _ in rule.shares]

    chosen = {
        (a, p): (n, k)
        for a, p, n, k in zip(triplets.anchor, triplets.positive, triplets.negative, triplets.kind, strict=True)
    }
    assert len(chosen) == len(triplets)
    skipped = fallback = alone = guarded = 0
    unguarded = Rule(shares=rule.shares, margin=rule.margin)
    for a in range(len(label)):
        there = oracle.positives(a, label, block.content)
        drawn = [p for p in pairs.positive[a] if p >= 0]
        assert len(set(drawn)) == len(drawn) == min(rule.positives, len(there))
        assert set(drawn) <= set(there)
        alone += not there
        for i, p in enumerate(drawn):
            allowed = {k: oracle.negatives(k, rule, d, a, p, label, block.content, block.group) for k in kinds}
            first = KINDS[pairs.first_kind[a, i]]
            expected = next((k for k in [first, *kinds] if allowed[k]), None)
            if rule.pick == "nearest":
                free = set(itertools.chain(*(oracle.negatives(k, unguarded, d, a, p, label) for k in kinds)))
                guarded += bool(free - set(itertools.chain(*allowed.values())))
            if expected is None:
                assert (a, p) not in chosen
                skipped += 1
                continue
            n, kind = chosen[a, p]
            assert KINDS[kind] == expected
            fallback += expected != first
            oracle.check(rule, d, label, (a, p, n, kind), block.content, block.group)
    [reason] = [name for name in counts if name.startswith("no_")]
    assert counts[reason] == skipped
    assert counts["fallback"] == fallback
    assert counts["anchors_without_positive"] == alone
    assert counts["pairs"] == len(triplets) + skipped
    if rule.pick == "nearest":
        assert counts["guarded"] == guarded
    np.testing.assert_array_equal(triplets.d_ap, d[triplets.anchor, triplets.positive].astype(np.float32))
    np.testing.assert_array_equal(triplets.d_an, d[triplets.anchor, triplets.negative].astype(np.float32))


@given(
    data=BLOCKS,
    rule=RULES,
    order=st.permutations(range(4)),
    threads=st.integers(1, 3),
    tile=st.sampled_from([1, 3, 16]),
)
@settings(max_examples=60, deadline=None)
def test_nearest_is_the_same_for_any_tiles_threads_and_order_of_merging(data, rule, order, threads, tile):
    label, block = data
    rule = Rule(**{**vars(rule), "pick": "nearest"})
    pairs, whole, *_ = select(rule, label, block)
    parts = [block.take(slice(k * len(label) // 4, (k + 1) * len(label) // 4)) for k in range(4)]
    merged = Found.nothing(pairs)
    for k in order:
        merged = merge(scan_nearest(rule, pairs, [parts[k]], threads, tile=(7, tile), task=17), merged)
    np.testing.assert_array_equal(merged.similarity, whole.similarity)
    np.testing.assert_array_equal(merged.row, whole.row)
    np.testing.assert_array_equal(merged.guarded, whole.guarded)


def test_random_is_the_same_for_any_threads_and_cut_into_items():
    label, block = labelled_block(seed=1, rows=700, classes=9, groups=True)
    rule = Rule(pick="random", shares=(("semi-hard", 1.0), ("hard", 1.0)), positives=3)
    pairs, whole, *_ = select(rule, label, block, blocks=5, threads=3)
    columns = dealt(rule, block, 5)
    size = ANCHOR_BLOCK
    for number in range(-(-len(label) // size)):
        here = slice(number * size, (number + 1) * size)
        part = make_pairs(
            rule, block.take(here), own_ranges(label)[here], pairs.positive[here],
            block.embedding[np.maximum(pairs.positive[here], 0)],
        )  # fmt: skip
        found = scan_random(rule, part, number, columns.__getitem__, 5, threads=1)
        np.testing.assert_array_equal(found.row, whole.row[here])


def test_random_is_uniform_over_all_that_qualify():
    """Chi-square over seeds, with columns dealt into several blocks of unequal numbers of qualifying rows."""
    label, block = labelled_block(seed=3, rows=120, classes=4)
    d = oracle.distance(block.embedding)
    drawn: dict[tuple[int, int], list[int]] = {}
    for seed in range(1500):
        rule = Rule(seed=seed, margin=0.5)
        *_, triplets, _ = select(rule, label, block, blocks=6)
        for a, p, n in zip(triplets.anchor, triplets.positive, triplets.negative, strict=True):
            drawn.setdefault((int(a), int(p)), []).append(int(n))
    statistic = freedom = 0
    for (a, p), rows in drawn.items():
        allowed = oracle.negatives("semi-hard", Rule(margin=0.5), d, a, p, label)
        if len(rows) >= 5 * len(allowed) and len(allowed) > 1:
            counts = [rows.count(n) for n in allowed]
            statistic += chisquare(counts).statistic
            freedom += len(allowed) - 1
    assert freedom > 500
    assert 1e-4 < chi2.sf(statistic, freedom) < 1 - 1e-4
