"""Selection against loops over every row, whatever the tiles, threads, blocks and order of merging."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipeline import selection
from pipeline.selection import KINDS, Block, Found, Rule, Triplets
from tests import oracle


def grid_vectors(rng, rows, dim):
    """L2-normalised vectors on the stored grid."""
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    return selection.to_grid(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def small_integers(rng, rows, dim):
    """Vectors with many ties and many copies; not normalised, which selection does not need."""
    return rng.integers(-2, 3, (rows, dim)).astype(np.float32) / 2


def corpus(seed, rows, classes, integers, groups):
    rng = np.random.default_rng(seed)
    label = np.sort(rng.integers(0, classes, rows))
    embedding = (small_integers if integers else grid_vectors)(rng, rows, 3)
    _, content = np.unique(embedding, axis=0, return_inverse=True)
    group = rng.integers(-1, 4, rows) if groups else None
    return label, Block(row=np.arange(rows), embedding=embedding, content=content.ravel().astype(np.int64), group=group)


def own_ranges(label):
    return np.stack([np.searchsorted(label, label, "left"), np.searchsorted(label, label, "right")], axis=1)


def make_pairs(rule, label, block):
    own = own_ranges(label)
    content_of = None if block.content is None else (lambda lo, hi: block.content[lo:hi])
    positive = selection.draw_positives(rule, block.row, own, content_of)
    return selection.make_pairs(rule, block, own, positive, block.embedding[np.maximum(positive, 0)])


def dealt(rule, block, blocks):
    number = selection.column_block_of(rule, block.row, blocks)
    return [block.take(np.flatnonzero(number == b)) for b in range(blocks)]


def select(rule, label, block, blocks=1, threads=1):
    pairs = make_pairs(rule, label, block)
    columns = dealt(rule, block, blocks)
    if rule.pick == "random":
        found = selection.scan_random(rule, pairs, 0, columns.__getitem__, blocks, threads)
    else:
        found = selection.scan_nearest(rule, pairs, columns, threads)
    return pairs, found, *selection.choose(rule, pairs, found)


rules = st.builds(
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
corpora = st.builds(
    corpus,
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 60),
    classes=st.integers(1, 12),
    integers=st.booleans(),
    groups=st.booleans(),
)


@given(rule=rules, data=corpora, blocks=st.integers(1, 4))
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
    data=corpora,
    rule=rules,
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "TILE", (7, tile))
        patch.setattr(selection, "TASK", 17)
        merged = Found.nothing(pairs)
        for k in order:
            merged = selection.merge(selection.scan_nearest(rule, pairs, [parts[k]], threads), merged)
    np.testing.assert_array_equal(merged.similarity, whole.similarity)
    np.testing.assert_array_equal(merged.row, whole.row)
    np.testing.assert_array_equal(merged.guarded, whole.guarded)


def test_random_is_the_same_for_any_threads_and_cut_into_items():
    label, block = corpus(seed=1, rows=700, classes=9, integers=False, groups=True)
    rule = Rule(pick="random", shares=(("semi-hard", 1.0), ("hard", 1.0)), positives=3)
    pairs, whole, *_ = select(rule, label, block, blocks=5, threads=3)
    columns = dealt(rule, block, 5)
    size = selection.ANCHOR_BLOCK
    for number in range(-(-len(label) // size)):
        here = slice(number * size, (number + 1) * size)
        part = selection.make_pairs(
            rule, block.take(here), own_ranges(label)[here], pairs.positive[here],
            block.embedding[np.maximum(pairs.positive[here], 0)],
        )  # fmt: skip
        found = selection.scan_random(rule, part, number, columns.__getitem__, 5, threads=1)
        np.testing.assert_array_equal(found.row, whole.row[here])


def test_random_is_uniform_over_all_that_qualify():
    """Chi-square over seeds, with columns dealt into several blocks of unequal numbers of qualifying rows."""
    label, block = corpus(seed=3, rows=120, classes=4, integers=False, groups=False)
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
    from scipy.stats import chi2

    assert 1e-4 < chi2.sf(statistic, freedom) < 1 - 1e-4


def test_positives_are_uniform():
    label, block = corpus(seed=3, rows=60, classes=5, integers=False, groups=False)
    own = own_ranges(label)
    seen = np.zeros((60, 60))
    for seed in range(2000):
        positive = selection.draw_positives(Rule(seed=seed, positives=2), block.row, own)
        for k in range(2):
            seen[np.arange(60), positive[:, k]] += positive[:, k] >= 0
    for a in range(60):
        others = [p for p in range(own[a, 0], own[a, 1]) if p != a]
        if len(others) > 2:
            assert chisquare(seen[a, others]).pvalue > 1e-6


def test_picks_of_different_anchors_stay_spread():
    """Distinct negatives within 10 % of independent uniform choice, though 256 anchors share an order."""
    rng = np.random.default_rng(0)
    label = np.sort(np.arange(20_000) % 50)
    block = Block(row=np.arange(20_000), embedding=grid_vectors(rng, 20_000, 16))
    rule = Rule(margin=0.5)
    blocks = selection.column_blocks(20_000)
    assert blocks == 5
    *_, triplets, _ = select(rule, label, block, blocks, threads=2)
    distinct = len(np.unique(triplets.negative))
    independent = 20_000 * (1 - (1 - 1 / 20_000) ** len(triplets))
    assert abs(distinct / independent - 1) < 0.1


def test_first_kinds_follow_the_shares():
    label, block = corpus(seed=2, rows=4000, classes=40, integers=False, groups=False)
    pairs = make_pairs(Rule(shares=(("hard", 3.0), ("semi-hard", 1.0)), positives=2), label, block)
    assert abs((pairs.first_kind == KINDS.index("hard")).mean() - 0.75) < 0.02


def test_a_new_round_draws_anew():
    label, block = corpus(seed=2, rows=400, classes=4, integers=False, groups=False)
    *_, one, _ = select(Rule(round=0, margin=1.0), label, block)
    *_, two, _ = select(Rule(round=1, margin=1.0), label, block)
    assert (one.positive[:100] != two.positive[:100]).mean() > 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": 0.0}, {"margin": 5.0}, {"positives": 0}, {"pick": "hardest"}, {"shares": ()},
        {"shares": (("easy", 1.0),)}, {"shares": (("hard", 0.0),)}, {"shares": (("hard", 1.0), ("hard", 1.0))},
        {"min_negative_distance": 4.0}, {"min_negative_ratio": -1.0}, {"min_negative_ratio": 1e300},
        {"margin": float("nan")},
    ],
)  # fmt: skip
def test_wrong_rules_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Rule(**wrong)


@given(data=corpora, rule=rules, cut=st.integers(0, 100), given_share=st.sampled_from([0.0, 0.2]))
@settings(max_examples=60, deadline=None)
def test_triplets_within_packs_equal_a_loop(data, rule, cut, given_share):
    label, block = data
    rng = np.random.default_rng(len(label))
    order = rng.permutation(len(label))  # a pack's rows have no order
    label, block = label[order], block.take(order)
    starts = np.array([0, min(cut, len(label)), len(label)])
    packs = [slice(*starts[i : i + 2]) for i in (0, 1)]
    d = [oracle.distance(block.embedding[pack]) for pack in packs]

    def codes(of, pack):
        return None if of is None else of[pack]

    corpus, pairs = [], []
    for number, pack in enumerate(packs):
        here = label[pack]
        every = {(a, p) for a in range(len(here)) for p in oracle.positives(a, here, codes(block.content, pack))}
        free = set(every)
        for a, p in sorted(every):
            others = np.flatnonzero(here != here[a])
            if len(others) and rng.random() < given_share:
                corpus.append((number, a, p, rng.choice(others)))
                free.remove((a, p))
        pairs.append(free)
    number, a, p, n = np.array(corpus, np.int64).reshape(-1, 4).T
    triplets = Triplets(
        anchor=block.row[starts[number] + a], positive=block.row[starts[number] + p],
        negative=block.row[starts[number] + n], kind=rng.integers(0, 2, len(a)).astype(np.int8),
        d_ap=np.zeros(len(a), np.float32), d_an=np.zeros(len(a), np.float32),
    )  # fmt: skip
    corpus_starts = np.searchsorted(number, [0, 1, 2])
    found, ends, counts = selection.select_within(rule, block, label, starts, triplets, corpus_starts, ["3/4", "3/5"])
    skipped = 0
    for i, pack in enumerate(packs):
        mine = {name: column[ends[i] : ends[i + 1]] for name, column in found.items()}
        given_here = corpus_starts[i + 1] - corpus_starts[i]
        np.testing.assert_array_equal(mine["scope"], np.arange(len(mine["scope"])) >= given_here)
        rows = np.stack([block.row[pack][mine[side][:given_here]] for side in ("anchor", "positive", "negative")])
        of = slice(*corpus_starts[i : i + 2])
        np.testing.assert_array_equal(rows, [triplets.anchor[of], triplets.positive[of], triplets.negative[of]])
        np.testing.assert_array_equal(mine["kind"][:given_here], triplets.kind[of])
        np.testing.assert_array_equal(mine["d_ap"], d[i][mine["anchor"], mine["positive"]].astype(np.float32))
        np.testing.assert_array_equal(mine["d_an"], d[i][mine["anchor"], mine["negative"]].astype(np.float32))
        sides = [mine[side][given_here:] for side in ("anchor", "positive", "negative", "kind")]
        chosen = list(zip(*map(np.ndarray.tolist, sides), strict=True))
        made = {(a, p) for a, p, *_ in chosen}
        assert made <= pairs[i] and len(made) == len(chosen)
        by_row = np.argsort(block.row[pack])  # the oracle breaks ties by position
        here, content, group = label[pack][by_row], codes(block.content, pack), codes(block.group, pack)
        content = None if content is None else content[by_row]
        group = None if group is None else group[by_row]
        rank, by_rank = np.argsort(by_row).tolist(), d[i][np.ix_(by_row, by_row)]
        for a, p, n, kind in chosen:
            oracle.check(rule, by_rank, here, (rank[a], rank[p], rank[n], kind), content, group)
        skipped += len(pairs[i] - made)
        for a, p in pairs[i] - made:
            for kind, _ in rule.shares:
                assert not oracle.negatives(kind, rule, by_rank, rank[a], rank[p], here, content, group)
    assert counts["skipped"] == skipped


def test_triplets_concatenate_and_take():
    one = Triplets.concatenate([Triplets.none(), Triplets.none()])
    assert len(one) == 0 and one.d_ap.dtype == np.float32


def test_grid_distances_are_exact_in_float32():
    vectors = grid_vectors(np.random.default_rng(0), 500, 256)
    assert np.abs(vectors * selection.GRID - np.rint(vectors * selection.GRID)).max() == 0
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    for tile in (1, 3, 100, 500):
        for start in range(0, 500, tile):
            np.testing.assert_array_equal(vectors[start : start + tile] @ vectors.T, exact[start : start + tile])


def test_the_blas_of_the_scan_is_limited_and_comes_without_the_rest_of_scipy():
    code = """
import sys, numpy as np
from pipeline import selection
assert "scipy.linalg" not in sys.modules
paths = {one["filepath"] for one in selection._blas.info()}
selection.mine_arrays(np.random.default_rng(0).normal(size=(50, 8)), np.arange(50) % 5, selection.Rule(pick="nearest"))
from threadpoolctl import threadpool_info
assert paths == {one["filepath"] for one in threadpool_info() if one["user_api"] == "blas"}, "loaded too late"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
