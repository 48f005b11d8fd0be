"""Which classes are confused, against counts made one triplet after the other."""

from collections import Counter

import numpy as np

from pipeline.reporting.confusion import confusion_matrix, confusions, count_pairs
from pipeline.reporting.sample import Pairs


def pairs_of(triplets):
    """(anchor, negative, d_an), of classes of three rows."""
    columns = np.array(triplets, np.float64).T
    anchor, negative = columns[:2].astype(np.int64)
    classes = np.stack([anchor // 3, negative // 3], axis=1)
    return Pairs(anchor=anchor, negative=negative, classes=classes, d_an=columns[2].astype(np.float32), rows=9)


SMALL = pairs_of([(0, 3, 0.6), (1, 4, 0.55), (3, 0, 0.3), (2, 7, 0.3), (6, 3, 0.25)])


def random_pairs(seed, count=400):
    rng = np.random.default_rng(seed)
    anchor, other = rng.integers(0, 30, count), rng.integers(1, 10, count)
    negative = (anchor // 3 + other) % 10 * 3 + rng.integers(0, 3, count)
    return pairs_of(np.stack([anchor, negative, rng.integers(0, 256, count) / 64], axis=1))


def test_pairs_have_known_counts_shares_and_examples():
    found = confusions(SMALL, 9, 3)
    assert [(p.a, p.b, p.triplets, p.share) for p in found] == [(0, 1, 3, 3 / 4), (0, 2, 1, 1 / 4), (1, 2, 1, 1 / 2)]
    assert found[0].examples == [2, 1]  # the smallest d_an first; triplet 0 has rows of triplet 2
    assert [p.triplets for p in confusions(SMALL, 1, 3)] == [3]


def test_the_most_confused_pairs_are_those_of_a_count():
    for seed in range(3):
        pairs = random_pairs(seed)
        both = [tuple(sorted(c)) for c in pairs.classes.tolist()]
        anchors = Counter(pairs.classes[:, 0].tolist())
        expected = sorted(Counter(both).items(), key=lambda item: (-item[1], item[0]))[:5]
        found = confusions(pairs, 5, 3)
        assert [((p.a, p.b), p.triplets) for p in found] == expected
        for p in found:
            assert p.share == p.triplets / (anchors[p.a] + anchors[p.b])
            rows = np.stack([pairs.anchor, pairs.negative], axis=1)[p.examples].ravel()
            assert len(set(rows.tolist())) == len(rows) and {both[t] for t in p.examples} == {(p.a, p.b)}
            assert pairs.d_an[p.examples[0]] == min(pairs.d_an[t] for t in range(400) if both[t] == (p.a, p.b))


def test_the_matrix_has_each_triplet_of_its_classes():
    for seed in range(3):
        pairs = random_pairs(seed)
        counts = Counter(map(tuple, pairs.classes.tolist()))
        for most, listed in ((16, 10), (4, 4), (2, 2)):
            classes, matrix = confusion_matrix(pairs, most)
            assert len(set(classes.tolist())) == listed
            for i, a in enumerate(classes.tolist()):
                assert matrix[i].tolist() == [counts[a, b] for b in classes.tolist()]
    assert sorted(confusion_matrix(SMALL, 2)[0]) == [0, 1]


def test_classes_that_are_alike_stand_side_by_side():
    """Four pairs of twins, mixed among each other only now and then."""
    rng = np.random.default_rng(0)
    twin = [(3 * c, 3 * (c ^ 1), 0.5) for c in rng.permutation(8).tolist() * 9]
    rare = [(3 * c, 3 * ((c + 3) % 8), 0.5) for c in range(8)]
    classes, _ = confusion_matrix(pairs_of(twin + rare), 16)
    place = {c: n for n, c in enumerate(classes.tolist())}
    assert all(abs(place[c] - place[c ^ 1]) == 1 for c in range(8))


def test_pairs_are_counted():
    a, b, counts = count_pairs(np.array([5, 0, 5, 5]), np.array([0, 7, 0, 1]))
    assert list(zip(a.tolist(), b.tolist(), counts.tolist(), strict=True)) == [(0, 7, 1), (5, 0, 2), (5, 1, 1)]
