"""What lies nearest to a row, against a full sort."""

import numpy as np
import pytest
from handmade import write_corpus, write_embeddings

from pipeline.reporting.neighbours import NEAR, NEIGHBOURS, nearest_others, neighbours
from pipeline.triplets.rows import to_grid


def store_of(tmp_path, sizes, seed=0):
    """Random embeddings of classes of these sizes, in shards of ten rows."""
    points = np.random.default_rng(seed).standard_normal((sum(sizes), 8))
    embeddings = to_grid((points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32))
    labels = [f"class {number}" for number, size in enumerate(sizes) for _ in range(size)]
    write_corpus(tmp_path, labels, embeddings)
    return write_embeddings(tmp_path, embeddings), embeddings, np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("others", [False, True])
def test_neighbours_are_those_of_a_full_sort(tmp_path, others):
    store, embeddings, label = store_of(tmp_path, [9] * 10)
    rows = np.arange(0, 90, 1)  # more than are looked at at a time
    nearest, distance, d_own = neighbours(store, rows, others)
    for i, row in enumerate(rows):
        expected = 2 - 2 * embeddings @ embeddings[row]
        expected[row] = np.inf
        np.testing.assert_array_equal(d_own[i], np.sort(expected[label == label[row]])[:NEAR])
        if others:
            expected[label == label[row]] = np.inf
        np.testing.assert_array_equal(distance[i], np.sort(expected)[:NEIGHBOURS])
        np.testing.assert_array_equal(expected[nearest[i]], distance[i])


def test_of_a_small_class_what_is_missing_is_infinitely_far(tmp_path):
    store, _, _ = store_of(tmp_path, [2, 8])
    _, _, d_own = neighbours(store, np.array([0, 5]))
    assert np.isfinite(d_own).tolist() == [[True, False, False], [True, True, True]]


def test_every_row_meets_the_nearest_rows_of_other_classes(tmp_path):
    store, embeddings, label = store_of(tmp_path, [5] * 6)
    pairs = nearest_others(store, seed=0)
    assert pairs.rows == 30
    for row in range(30):
        distance = 2 - 2 * embeddings @ embeddings[row]
        distance[label == label[row]] = np.inf
        np.testing.assert_array_equal(np.sort(pairs.d_an[pairs.anchor == row]), np.sort(distance)[:NEAR])
    np.testing.assert_array_equal(pairs.classes, np.stack([label[pairs.anchor], label[pairs.negative]], axis=1))


def test_in_a_tiny_corpus_there_are_fewer_others(tmp_path):
    store, _, label = store_of(tmp_path, [3, 1])
    pairs = nearest_others(store, seed=0)
    assert sorted(zip(pairs.anchor.tolist(), pairs.negative.tolist(), strict=True)) == [
        (0, 3), (1, 3), (2, 3), (3, 0), (3, 1), (3, 2),
    ]  # fmt: skip
    assert np.isfinite(pairs.d_an).all()
