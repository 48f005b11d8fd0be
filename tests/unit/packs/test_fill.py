"""Which triplets share a shard and a pack, and which rows fill it up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipeline.packs.fill import assemble, hash_order, shard_of
from pipeline.packs.packs import PackOptions
from pipeline.triplets.rows import Triplets
from pipeline.triplets.rule import Rule


def some_triplets(seed, count, classes, size):
    rng = np.random.default_rng(seed)
    c = rng.integers(0, classes, count)
    other = (c + rng.integers(1, classes, count)) % classes
    anchor = c * size + rng.integers(0, size, count)
    positive = c * size + (anchor - c * size + rng.integers(1, size, count)) % size
    rows = {"anchor": anchor, "positive": positive, "negative": other * size + rng.integers(0, size, count)}
    triplets = Triplets(
        **rows,
        kind=np.zeros(count, np.int8),
        d_ap=np.zeros(count, np.float32),
        d_an=np.zeros(count, np.float32),
    )
    own = np.stack([c * size, (c + 1) * size], axis=1)
    return triplets, own, np.stack([other * size, (other + 1) * size], axis=1)


@given(
    seed=st.integers(0, 1000), count=st.integers(0, 200), classes=st.integers(2, 20), size=st.integers(2, 30),
    pack_rows=st.sampled_from([3, 8, 16, 128]), fill=st.sampled_from([2, 4]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_each_triplet_is_in_one_pack_that_fits(seed, count, classes, size, pack_rows, fill):
    triplets, own, other = some_triplets(seed, count, classes, size)
    options = PackOptions(pack_rows=pack_rows, fill=fill)
    packs = assemble(Rule(), options, 5, triplets, own, other)
    rows, row_starts, starts = packs.rows, packs.starts, packs.triplet_starts
    assert packs.triplets is triplets and packs.names == [f"5/{n}" for n in range(len(packs))]
    assert starts[0] == 0 and starts[-1] == count and row_starts[-1] == len(rows)
    assert len(starts) == len(row_starts) and (np.diff(starts) > 0).all()
    for pack in range(len(starts) - 1):
        here = rows[row_starts[pack] : row_starts[pack + 1]]
        assert len(set(here)) == len(here) <= pack_rows
        inside = slice(starts[pack], starts[pack + 1])
        needed = np.concatenate([triplets.anchor[inside], triplets.positive[inside], triplets.negative[inside]])
        assert set(needed) <= set(here)
        if options.lone:
            continue
        label, filled = np.unique(here // size, return_counts=True)
        assert (filled >= min(fill, size)).all()
        assert set(label) == set(needed // size), "fill brings no new class"
        extra = {c: np.sum(here // size == c) - np.sum(np.unique(needed) // size == c) for c in label}
        assert all(n == 0 or filled[list(label).index(c)] == min(fill, size) for c, n in extra.items())
        if pack + 2 < len(starts):  # the next triplet did not fit
            nxt = starts[pack + 1]
            more = np.unique(
                np.concatenate([needed, [triplets.anchor[nxt], triplets.positive[nxt], triplets.negative[nxt]]])
            )
            _, sizes = np.unique(more // size, return_counts=True)
            assert len(more) + np.maximum(min(fill, size) - sizes, 0).sum() > pack_rows


def test_packs_are_taken_apart_as_they_are():
    packs = assemble(Rule(), PackOptions(pack_rows=16), 2, *some_triplets(0, 60, 9, 12))
    part = packs.take(3, 6)
    assert len(part) == 3 and part.names == packs.names[3:6] == part.take(0, 3).names
    np.testing.assert_array_equal(part.rows[part.starts[1] :], packs.rows[packs.starts[4] : packs.starts[6]])
    inside = part.take(1, 3)
    assert inside.names == ["2/4", "2/5"] and inside.starts[0] == inside.triplet_starts[0] == 0
    for n in (0, 1):
        of, whole = (
            slice(*starts) for starts in (inside.triplet_starts[n : n + 2], packs.triplet_starts[4 + n : 6 + n])
        )
        np.testing.assert_array_equal(inside.triplets.anchor[of], packs.triplets.anchor[whole])
        of, whole = (slice(*starts) for starts in (inside.starts[n : n + 2], packs.starts[4 + n : 6 + n]))
        np.testing.assert_array_equal(inside.rows[of], packs.rows[whole])


def test_shards_and_their_order_do_not_depend_on_how_triplets_come():
    """Shards are runs of one order; which triplet comes first is a draw of the seed."""
    triplets, *_ = some_triplets(0, 5000, 20, 30)
    shard = shard_of(Rule(), triplets, 7)
    assert shard.min() == 0 and shard.max() == 6 and chisquare(np.bincount(shard)).pvalue > 1e-4
    ordered = triplets.take(hash_order(Rule(), triplets))
    assert (np.diff(shard_of(Rule(), ordered, 7)) >= 0).all()
    mixed = triplets.take(np.random.default_rng(0).permutation(5000))
    again = mixed.take(hash_order(Rule(), mixed))
    np.testing.assert_array_equal([again.anchor, again.positive], [ordered.anchor, ordered.positive])
    other = triplets.take(hash_order(Rule(seed=1), triplets))
    assert (other.anchor != ordered.anchor).mean() > 0.9


def test_several_negatives_of_a_pair_come_in_one_order_and_each_once():
    triplets, *_ = some_triplets(0, 40, 3, 2)
    twice = Triplets.concatenate([triplets, triplets]).take(np.random.default_rng(0).permutation(80))
    rows = [triplets.anchor, triplets.positive, triplets.negative]
    once, again = (found.take(hash_order(Rule(), found)) for found in (triplets, twice))
    assert len(once) == len(again) == len(np.unique(rows, axis=1).T) > len(np.unique(rows[:2], axis=1).T)
    np.testing.assert_array_equal(once.negative, again.negative)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(({"pack_rows": rows}, f"pack_rows must be 3 .lone.*found {rows}") for rows in (0, 2, 4, 7, 5000)),
        ({"fill": 65}, r"hold two classes of 65 \(fill\).*found 128"),
        ({"fill": 1}, "fill must be at least 2.*found 1"),
        ({"packs": "spread", "pack_rows": 3}, "packs spread does nothing for lone triplets"),
        ({"pack_pick": "nearest", "pack_rows": 3}, "pack_pick nearest does nothing for lone triplets"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PackOptions(**wrong)
