"""Every row queries all others, or queries the gallery: recall at k, R-precision, MAP@R."""

from typing import Any

import numpy as np
from scipy.sparse import issparse

from pipeline.corpus.corpus import Corpus, Split
from pipeline.errors import InputError

RECALL_AT = (1, 5, 10)
BLOCK = 256


def queries_of(corpus: Corpus, split: Split) -> np.ndarray | None:
    """bool [rows]: those with the role of a query; None if the split has none."""
    if not corpus.manifest.roles:
        return None
    roles = [example.get("role", [b""])[0] for example in split.examples(np.arange(split.rows))]
    query = np.array([role == b"query" for role in roles], bool)
    return query if query.any() else None


def has_queries(corpus: Corpus, split: Split) -> bool:
    """Whether a row has one of its class to find: `retrieval` refuses a split without one."""
    asking, *_ = _asking(split.class_of(np.arange(split.rows)), queries_of(corpus, split))
    return bool(len(asking))


def _asking(label: np.ndarray, query: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64 each: the rows that have some to find, how many each has, and the rows among which they look."""
    asking = np.arange(len(label)) if query is None else np.flatnonzero(query)
    gallery = np.arange(len(label)) if query is None else np.flatnonzero(~query)
    classes, which = np.unique(label, return_inverse=True)
    relevant = np.bincount(which[gallery], minlength=len(classes))[which[asking]] - (query is None)
    return asking[relevant > 0], relevant[relevant > 0], gallery


def nearest(similarity: np.ndarray, depth: int) -> np.ndarray:
    """int64 [depth]: where the highest of float [n] are, the highest first; ties go to the lower place."""
    enough = np.flatnonzero(similarity >= np.partition(similarity, -depth)[-depth])
    return enough[np.argsort(-similarity[enough], kind="stable")[:depth]]


def retrieval(embeddings: Any, label: np.ndarray, query: np.ndarray | None = None) -> dict[str, float]:
    """Every row queries all others; or queries the gallery, as In-shop Clothes and VeRi are scored.

    Args:
      embeddings: float32 [n, dim], L2-normalised, or a sparse matrix. Similarities of those on the grid are exact.
      label: int64 [n].
      query: bool [n], which rows are queries; the others are the gallery.
    Returns:
      recall_at_k: share of queries with a row of their label among the k nearest. r_precision, map_at_r: of the R
      nearest, R being the rows of the query's label that it can find; Musgrave et al., A Metric Learning Reality Check,
      section 4.4 (https://arxiv.org/abs/2003.08505). mean_distance: over all
      pairs; near 0 the embedding has collapsed. Ties go to the lower row. Rows with none to find are no queries;
      `queries` counts the others.
    Raises:
      InputError: if there is no query.
    """
    n, (asking, relevant, gallery) = len(label), _asking(label, query)
    if not len(asking):
        raise InputError("no class of this split has two rows; there is nothing to retrieve")
    candidates, others = embeddings[gallery].T, len(gallery) - (query is None)
    depth = min(others, max(*RECALL_AT, int(relevant.max())))
    hits = dict.fromkeys(RECALL_AT, 0.0)
    r_precision = precision = 0.0
    for start in range(0, len(asking), BLOCK):
        rows, r = asking[start : start + BLOCK], relevant[start : start + BLOCK, None]
        similarity = embeddings[rows] @ candidates
        similarity = similarity.toarray() if issparse(similarity) else similarity
        if query is None:
            similarity[np.arange(len(rows)), rows] = -np.inf  # nobody finds itself
        top = np.array([nearest(row, depth) for row in similarity])
        good, within = label[gallery][top] == label[rows, None], np.arange(depth) < r
        for k in RECALL_AT:
            hits[k] += good[:, :k].any(axis=1).sum()
        at = np.cumsum(good, axis=1) / (np.arange(depth) + 1)
        r_precision += ((good & within) / r).sum()
        precision += ((good & within) * at / r).sum()
    queries = len(asking)
    total = np.asarray(embeddings.sum(axis=0, dtype=np.float64)).ravel()
    squares = embeddings.multiply(embeddings) if issparse(embeddings) else np.square(embeddings)
    pairwise = (total @ total - squares.sum(dtype=np.float64)) / (n * (n - 1))
    measures = {
        **{f"recall_at_{k}": hits[k] / queries for k in RECALL_AT},
        "r_precision": r_precision / queries,
        "map_at_r": precision / queries,
        "mean_distance": 2 - 2 * pairwise,
    }
    return {name: float(value) for name, value in measures.items()} | {"queries": queries}  # NumPy's are no JSON
