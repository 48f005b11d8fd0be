"""Retrieval against loops."""

import numpy as np
import pytest

from pipeline.errors import InputError
from trainer.measures.retrieval import RECALL_AT, retrieval


def test_retrieval_equals_loops():
    rng = np.random.default_rng(0)
    label = np.sort(rng.integers(0, 12, 70))
    label[-1] = 99  # alone: no query, still a candidate
    vectors = rng.standard_normal((70, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    embeddings = np.rint(vectors * 8).astype(np.float32) / 8  # ties
    d = 2 - 2 * embeddings.astype(np.float64) @ embeddings.T.astype(np.float64)
    recall, precision, r_precision, queries = dict.fromkeys(RECALL_AT, 0), 0.0, 0.0, 0
    for q in range(70):
        order = sorted((n for n in range(70) if n != q), key=lambda n: (d[q, n], n))
        good = [label[n] == label[q] for n in order]
        r = sum(good)
        if r:
            queries += 1
            r_precision += sum(good[:r]) / r
            precision += sum(sum(good[: i + 1]) / (i + 1) for i in range(r) if good[i]) / r
            for k in recall:
                recall[k] += any(good[:k])
    result = retrieval(embeddings, label)
    assert result["queries"] == queries
    assert abs(result["map_at_r"] - precision / queries) < 1e-12
    assert abs(result["r_precision"] - r_precision / queries) < 1e-12
    for k in recall:
        assert result[f"recall_at_{k}"] == recall[k] / queries
    assert abs(result["mean_distance"] - d[~np.eye(70, dtype=bool)].mean()) < 1e-6


def test_classes_of_one_row_each_are_refused():
    with pytest.raises(InputError, match="no class of this split has two rows"):
        retrieval(np.eye(4, dtype=np.float32), np.arange(4))
