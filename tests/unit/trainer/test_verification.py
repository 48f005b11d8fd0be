"""Measures of held-out rows, against scikit-learn and cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from pipeline.triplets.rows import to_grid
from trainer.measures import evaluation, verification
from trainer.measures.verification import Curve, curve


def spread(rows: int, classes: int, noise: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, rows)
    vectors = rng.standard_normal((classes, 8))[label] + noise * rng.standard_normal((rows, 8))
    return to_grid((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)), label


def pairs(embeddings, label):
    i, j = np.triu_indices(len(label), 1)
    return (embeddings.astype(np.float64) @ embeddings.T.astype(np.float64))[i, j], label[i] == label[j]


def hand(same: list[int], different: list[int]) -> Curve:
    return Curve(place=np.arange(len(same)), same=np.array(same), different=np.array(different))


@pytest.mark.parametrize(("rows", "classes", "noise"), [(300, 7, 1.0), (700, 40, 0.5), (1100, 3, 2.0)])
def test_against_scikit_learn(rows, classes, noise):
    embeddings, label = spread(rows, classes, noise)
    similarity, same = pairs(embeddings, label)
    found = curve(embeddings, label)
    assert (found.same.sum(), found.different.sum()) == (same.sum(), (~same).sum())
    assert verification.roc_auc(found) == pytest.approx(roc_auc_score(same, similarity), abs=1e-12)
    far, val, _ = roc_curve(same, similarity, drop_intermediate=False)
    for limit in (1e-3, 0.01, 0.3):
        assert verification.val_at_far(found, limit) == val[far <= limit].max()
    crossing = np.argmin(np.abs(far - (1 - val)))
    assert verification.equal_error_rate(found) == pytest.approx((far[crossing] + 1 - val[crossing]) / 2, abs=2e-3)


def test_by_hand():
    perfect = hand([2, 1, 0, 0], [0, 0, 3, 1])
    assert verification.roc_auc(perfect) == 1
    assert verification.equal_error_rate(perfect) == 0
    assert verification.val_at_far(perfect) == 1
    reverse = hand([0, 1], [1, 0])
    assert verification.roc_auc(reverse) == 0
    assert verification.equal_error_rate(reverse) == 1
    assert verification.val_at_far(reverse) == 0
    tied = hand([4], [4])
    assert verification.roc_auc(tied) == 0.5 and verification.equal_error_rate(tied) == 0.5
    # One false accept of four comes before the last of four true ones: at FAR .25 all are accepted, below it three.
    mixed = hand([3, 0, 1, 0], [0, 1, 0, 3])
    assert verification.val_at_far(mixed, 0.24) == 0.75 and verification.val_at_far(mixed, 0.25) == 1
    assert verification.roc_auc(mixed) == 15 / 16
    assert verification.equal_error_rate(mixed) == 0.25


def test_ten_folds_choose_the_threshold_on_the_other_nine():
    """The same thing again, pair by pair."""
    embeddings, label = spread(250, 30, 0.8)
    fold = verification.deal_folds(label)
    assert all(len(np.unique(fold[label == c])) == 1 for c in np.unique(label)), "folds share no class"
    similarity, same, of = [], [], []
    for k in range(10):
        s, t = pairs(embeddings[fold == k], label[fold == k])
        similarity, same, of = [*similarity, *s], [*same, *t], [*of, *[k] * len(s)]
    similarity, same, of = np.array(similarity), np.array(same), np.array(of)

    def accuracy(threshold, where):
        accepted = similarity[where] >= threshold
        return (accepted[same[where]].mean() + 1 - accepted[~same[where]].mean()) / 2

    expected = []
    for k in range(10):
        candidates = np.unique(similarity[of != k])[::-1]
        best = max(candidates, key=lambda threshold: (accuracy(threshold, of != k), threshold))
        expected.append(accuracy(best, of == k))
    found = verification.verification(embeddings, label)
    assert found["accuracy_10_fold"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert found["accuracy_10_fold_std"] == pytest.approx(np.std(expected), abs=1e-12)


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 9))
def test_every_pair_is_counted_once_however_few(rows, classes, seed):
    embeddings, label = spread(rows, classes, 1.0, seed)
    similarity, same = pairs(embeddings, label)
    found = curve(embeddings, label)
    where = np.repeat(found.place, found.same)
    expected = np.sort(verification.REACH - np.rint(similarity[same] * verification.UNIT).astype(int))
    assert np.array_equal(where, expected)
    assert set(verification.verification(embeddings, label)) >= {"roc_auc", "accuracy_10_fold"}


def test_one_class_has_no_verification():
    embeddings, label = spread(20, 1, 1.0)
    assert set(verification.verification(embeddings, label).values()) == {None}
    assert evaluation.measure(embeddings, label)["linear_probe"] is None


def test_probe_and_clusters_tell_separate_classes_from_noise():
    embeddings, label = spread(400, 4, 0.1)
    assert evaluation.linear_probe(embeddings, label) > 0.98
    assert evaluation.clusters(embeddings, label, seed=0) > 0.95
    shuffled = np.random.default_rng(1).permutation(label)
    assert evaluation.linear_probe(embeddings, shuffled) < 0.5
    assert evaluation.clusters(embeddings, shuffled, seed=0) < 0.1
