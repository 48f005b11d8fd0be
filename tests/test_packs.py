"""How triplets are put into packs, on arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import packs
from pipeline.selection import Rule, Triplets


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
    rows, row_starts, starts = packs.assemble(Rule(), triplets, own, other, pack_rows, fill, shard=0)
    assert starts[0] == 0 and starts[-1] == count and row_starts[-1] == len(rows)
    assert (np.diff(starts) > 0).all()
    for pack in range(len(starts) - 1):
        here = rows[row_starts[pack] : row_starts[pack + 1]]
        assert len(set(here)) == len(here) <= pack_rows
        inside = slice(starts[pack], starts[pack + 1])
        needed = np.concatenate([triplets.anchor[inside], triplets.positive[inside], triplets.negative[inside]])
        assert set(needed) <= set(here)
        if pack_rows == packs.LONE:
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


@pytest.mark.parametrize("pack_rows", [0, 2, 4, 7, 5000])
def test_wrong_pack_rows_are_refused(pack_rows):
    with pytest.raises(ValueError, match="pack_rows"):
        packs.check(pack_rows, 4)


def test_chunks_cover_all_packs_within_the_limit():
    sizes, starts = np.array([5, 5, 5, 100, 5, 5]), np.array([0, 2, 3, 4, 6])
    cut = list(packs.chunks(sizes, starts, 15))
    assert [a for a, _ in cut] == [0, *[b for _, b in cut[:-1]]] and cut[-1][1] == 4
    assert cut == [(0, 2), (2, 3), (3, 4)]
