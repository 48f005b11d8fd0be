"""Hashes in place of random numbers."""

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from pipeline.triplets.draws import below, draw_key, hashes, row_hashes


def test_a_hash_is_of_its_key_and_rows_alone():
    key, first, second = draw_key(1, 2, "positive"), np.arange(1000), np.arange(1000)[::-1].copy()
    whole = hashes(key, first, second)
    assert len(np.unique(whole)) == 1000
    np.testing.assert_array_equal(hashes(key, first[7:], second[7:]), whole[7:])
    np.testing.assert_array_equal(row_hashes(key, first), hashes(key, first, np.zeros(1000, np.int64)))


def test_seed_round_and_purpose_each_change_the_key():
    which = [(0, 0, "deal"), (1, 0, "deal"), (0, 1, "deal"), (1, 1, "deal"), (11, 0, "deal"), (0, 0, "visit")]
    assert len({draw_key(*one) for one in which}) == len(which)


def test_hashes_are_uniform():
    found = row_hashes(draw_key(0, 0, "deal"), np.arange(100_000))
    assert kstest(found.astype(np.float64) / 2.0**64, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000])
def test_numbers_below_n_are_uniform(n):
    drawn = [below(h, n) for h in row_hashes(draw_key(0, 0, "below"), np.arange(20 * n))]
    assert 0 <= min(drawn) and max(drawn) < n
    assert n == 1 or chisquare(np.bincount(drawn, minlength=n)).pvalue > 1e-4


def test_the_largest_hash_is_below_n():
    largest = np.uint64(2**64 - 1)
    assert [below(largest, n) for n in (1, 3, 10**9, 2**40)] == [0, 2, 10**9 - 1, 2**40 - 1]
