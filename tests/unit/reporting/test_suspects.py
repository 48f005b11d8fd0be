"""Which labels look wrong, against the rule row by row."""

import numpy as np
import pytest
from handmade import write_corpus, write_embeddings

from pipeline.corpus.corpus import Corpus
from pipeline.reporting.neighbours import NEAR, NEIGHBOURS, nearest_others
from pipeline.reporting.sample import Pairs, classes_of
from pipeline.reporting.suspects import UNCHECKED, suspects, with_conflicts
from pipeline.triplets.rows import to_grid


def store_of(run_dir, angles, labels):
    """Embeddings on a circle."""
    points = to_grid(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    write_corpus(run_dir, labels, points)
    return write_embeddings(run_dir, points), points


def listed(store):
    return suspects(nearest_others(store, seed=0), store.split, store)


def clusters(each=8, classes=4):
    """Angles of rows that lie by class, far from the other classes."""
    label = np.repeat(np.arange(classes), each)
    return label * 2 * np.pi / classes + np.random.default_rng(0).uniform(-0.2, 0.2, len(label)), label


def test_where_classes_lie_apart_nothing_is_suspected(tmp_path):
    angles, label = clusters()
    assert listed(store_of(tmp_path, angles, [f"class {c}" for c in label])[0]) == []


def test_a_row_among_another_class_is_suspected(tmp_path):
    angles, label = clusters()
    angles[3] = np.pi + 0.01  # of class 0, where class 2 lies
    store, points = store_of(tmp_path, angles, [f"class {c}" for c in label])
    [found] = listed(store)
    distance = 2 - 2 * points @ points[3]
    own, other = np.sort(distance[[0, 1, 2, 4, 5, 6, 7]])[:NEAR], np.sort(distance[16:24])[:NEAR]
    assert (found.row, found.label, found.looks_like, found.copy) == (3, 0, 2, False)
    assert (found.neighbours, found.own, found.other) == (7, 0, 7)  # asked about as many as its class has others
    assert found.d_own == pytest.approx(own.mean()) and found.d_other == pytest.approx(other.mean())
    assert found.nearest == 16 + distance[16:24].argmin()
    assert found.anchors == 8  # of class 2, whose nearest row of another class it is


@pytest.mark.parametrize("seed", range(3))
def test_suspects_are_those_of_the_rule(tmp_path, seed):
    """Classes that overlap: every row asked, by a sort of its own."""
    label = np.repeat(np.arange(6), 14)
    angles = label + np.random.default_rng(seed).normal(0, 0.8, len(label))
    store, points = store_of(tmp_path, angles, [f"class {c}" for c in label])
    pairs = nearest_others(store, seed=0)
    asked, expected = set(), {}
    for row in np.unique(pairs.negative).tolist():
        distance = 2 - 2 * points @ points[row]
        distance[row] = np.inf
        order = np.argsort(distance, kind="stable")
        if len(np.unique(distance[order[: NEIGHBOURS + 1]])) <= NEIGHBOURS:
            continue  # of equal ones any may come first
        asked.add(row)
        near = order[:NEIGHBOURS]
        counts = np.bincount(label[near], minlength=6)
        other = int(counts.argmax())
        d_other = distance[near[label[near] == other]][:NEAR].mean()
        d_own = np.sort(distance[label == label[row]])[:NEAR].mean()
        if other != label[row] and 2 * counts[other] > NEIGHBOURS and d_other < d_own:
            expected[row] = (other, int(counts[other]), int(counts[label[row]]), d_other / d_own)
    found = {s.row: s for s in suspects(pairs, store.split, store)}
    assert 3 < len(expected) < len(asked) and set(expected) == asked & set(found)
    for row, (other, of_other, own, ratio) in expected.items():
        s = found[row]
        assert (s.looks_like, s.other, s.own, s.neighbours) == (other, of_other, own, NEIGHBOURS)
        assert s.d_other / s.d_own == pytest.approx(ratio)
    ratios = [s.d_other / s.d_own for s in found.values()]
    assert ratios == sorted(ratios)


def test_a_class_of_few_rows_says_too_little(tmp_path):
    angles = np.array([*np.linspace(0, 0.1, 5), 3.0, 3.1, 0.05])  # of the class of three one lies among the others
    assert listed(store_of(tmp_path, angles, ["a"] * 5 + ["b"] * 3)[0]) == []


def test_without_embeddings_it_is_the_negatives_of_most_anchors(tmp_path):
    write_corpus(tmp_path, [f"class {n // 60}" for n in range(180)], np.eye(180, dtype=np.float32), shard_rows=90)
    split = Corpus.open(tmp_path).split("train")
    # Row 60 is the negative of three anchors of class 0 and of four of class 2; row 7 of two, one of them twice.
    anchor = np.array([0, 1, 2, 120, 121, 122, 123, 61, 62, 61, *range(10, 50), *range(60, 110)])
    negative = np.array([60] * 7 + [7] * 3 + [*range(130, 170), *range(110, 160)])
    pairs = Pairs(
        anchor=anchor, negative=negative, classes=classes_of(split, anchor, negative),
        d_an=np.ones(len(anchor), np.float32), rows=180,
    )  # fmt: skip
    found = suspects(pairs, split, None)
    assert len(found) == UNCHECKED
    assert [(s.row, s.label, s.looks_like, s.anchors) for s in found[:2]] == [(60, 1, 2, 4), (7, 0, 1, 2)]
    assert all(s.neighbours == 0 and s.nearest is None for s in found)


def test_rows_of_the_same_bytes_under_two_labels_come_first(tmp_path):
    angles, label = clusters()
    angles[5] = angles[9] = np.pi / 2 + 0.05  # of classes 0 and 1, where class 1 lies
    angles[2] = np.pi  # of class 0, where class 2 lies
    angles[29] = angles[30]  # a copy under the same label
    store, _ = store_of(tmp_path, angles, [f"class {c}" for c in label])
    first, second, third = with_conflicts(listed(store), store.split)
    assert [(s.row, s.nearest, s.copy) for s in (first, second)] == [(5, 9, True), (9, 5, True)]
    assert first.neighbours and not second.neighbours  # of the two its neighbours tell which label is wrong
    assert (second.label, second.looks_like, third.row, third.copy) == (1, 0, 2, False)
