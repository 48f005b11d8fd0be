"""Whether mining pays here: what a round's embeddings say, and what was measured where they said the like.

docs/does-it-pay.md has the measurements; `make bench-quality` judges the bounds below by them.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.embedding.store import EmbeddingStore
from pipeline.mining.manifest import TripletsManifest
from pipeline.reporting.neighbours import neighbours
from pipeline.reporting.suspects import among_others

LOOKED_AT = 512  # rows
NEGATIVES = 64  # drawn for each
MARGIN = 0.2  # of what counts as active here, whatever the mining's


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What the embeddings of a round say; shares of 0 to 1, of LOOKED_AT rows.

    active: of random triplets, those with a loss at MARGIN; semi_hard: those whose negative is farther than the
    positive, too. pure: of rows, those whose nearest row is of their class. suspected: those that lie among another
    class, as `suspects` has it. classes_met: classes in a pack, over all. passes: rows of the round's packs, over all.
    """

    active: float
    semi_hard: float
    pure: float
    suspected: float
    classes_met: float
    passes: float


def signals(store: EmbeddingStore, manifest: TripletsManifest) -> Signals:
    split, rng = store.split, np.random.default_rng(manifest.round)
    rows = np.sort(rng.permutation(split.rows)[:LOOKED_AT])
    d_ap, d_an = _random_triplets(store, rows, rng)
    active, beyond = d_an < d_ap + MARGIN, d_an > d_ap
    found = neighbours(store, rows)
    pure = split.class_of(found[0][:, 0]) == split.class_of(rows)
    classes = min(split.classes, manifest.packing.pack_rows // max(manifest.packing.fill, 1))
    return Signals(
        active=float(active.mean()), semi_hard=float((active & beyond).mean()), pure=float(pure.mean()),
        suspected=sum(1 for _ in among_others(split, rows, found)) / len(rows), classes_met=classes / split.classes,
        passes=manifest.rows / split.rows,
    )  # fmt: skip


def _random_triplets(
    store: EmbeddingStore, rows: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """d_ap, d_an: float32 [n, NEGATIVES], of the rows whose class has others: one positive each, all drawn."""
    split = store.split
    first, last = split.class_ranges(rows).T
    rows, first, last = (of[last - first > 1] for of in (rows, first, last))
    if not len(rows):
        return np.empty((0, NEGATIVES)), np.empty((0, NEGATIVES))
    positive = first + (rows - first + 1 + rng.integers(0, last - first - 1)) % (last - first)
    # A row of another class: any place but those of its own.
    place = rng.integers(0, (split.rows - (last - first))[:, None], (len(rows), NEGATIVES))
    negative = place + (last - first)[:, None] * (place >= first[:, None])
    of_rows, of_positive = store.embeddings(rows), store.embeddings(positive)
    flat, where = np.unique(negative, return_inverse=True)
    of_negative = store.embeddings(flat)[where.reshape(negative.shape)]
    d_ap = 2 - 2 * np.einsum("nd,nd->n", of_rows, of_positive)
    d_an = 2 - 2 * np.einsum("nd,nkd->nk", of_rows, of_negative)
    return np.broadcast_to(d_ap[:, None], d_an.shape), d_an
