"""How the corpus is dealt to column blocks, and in which order an anchor block visits them."""

import numpy as np
import pytest
from blocks import grid_vectors, select
from scipy.stats import chisquare

from pipeline.triplets.columns import column_block_of, column_blocks, visiting_order
from pipeline.triplets.rows import Block
from pipeline.triplets.rule import Rule


def test_picks_of_different_anchors_stay_spread():
    """Distinct negatives within 10 % of independent uniform choice, though 256 anchors share an order."""
    rng = np.random.default_rng(0)
    label = np.sort(np.arange(20_000) % 50)
    block = Block(row=np.arange(20_000), embedding=grid_vectors(rng, 20_000, 16))
    rule = Rule(margin=0.5)
    blocks = column_blocks(20_000)
    assert blocks == 5
    *_, triplets, _ = select(rule, label, block, blocks, threads=2)
    distinct = len(np.unique(triplets.negative))
    independent = 20_000 * (1 - (1 - 1 / 20_000) ** len(triplets))
    assert abs(distinct / independent - 1) < 0.1


def test_rows_are_dealt_evenly_however_they_are_cut():
    rule, rows = Rule(seed=3), np.arange(40_000)
    number = column_block_of(rule, rows, 10)
    assert chisquare(np.bincount(number, minlength=10)).pvalue > 1e-4
    cut = [column_block_of(rule, part, 10) for part in np.split(rows, [1, 700, 25_000])]
    np.testing.assert_array_equal(np.concatenate(cut), number)
    assert (column_block_of(Rule(seed=4), rows, 10) != number).mean() > 0.8


@pytest.mark.parametrize(("rows", "blocks"), [(0, 1), (1, 1), (4096, 1), (4097, 2), (10**9, 244_141)])
def test_column_blocks_hold_4096_rows_on_average(rows, blocks):
    assert column_blocks(rows) == blocks


def test_every_anchor_block_visits_every_column_block_in_an_order_of_its_own():
    orders = np.stack([visiting_order(Rule(), number, 7) for number in range(2000)])
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(7), (2000, 1)))
    for place in range(7):
        assert chisquare(np.bincount(orders[:, place])).pvalue > 1e-4
