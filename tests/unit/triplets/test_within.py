"""Triplets inside packs against a loop over every row of the pack."""

import numpy as np
import oracle
from blocks import BLOCKS, RULES
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.triplets.rows import Triplets
from pipeline.triplets.rule import Rule
from pipeline.triplets.within import select_within


@given(data=BLOCKS, rule=RULES, cut=st.integers(0, 100), given_share=st.sampled_from([0.0, 0.2]))
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
    found, ends, counts = select_within(rule, block, label, starts, triplets, corpus_starts, ["3/4", "3/5"])
    skipped = guarded = 0
    unguarded = Rule(shares=rule.shares, margin=rule.margin)
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
        kinds = [kind for kind, _ in rule.shares]
        for a, p in pairs[i]:
            of_pair = by_rank, rank[a], rank[p], here
            free = {n for kind in kinds for n in oracle.negatives(kind, unguarded, *of_pair)}
            allowed = {n for kind in kinds for n in oracle.negatives(kind, rule, *of_pair, content, group)}
            guarded += free != allowed
        skipped += len(pairs[i] - made)
        for a, p in pairs[i] - made:
            for kind, _ in rule.shares:
                assert not oracle.negatives(kind, rule, by_rank, rank[a], rank[p], here, content, group)
    assert counts == {"skipped": skipped, "guarded": guarded}
