"""Whether mining pays here: what a round's embeddings say, and what was measured where they said the like.

docs/does-it-pay.md has the measurements; `make bench-quality` judges the bounds below by them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.store import EmbeddingStore
from pipeline.files.layout import Run
from pipeline.files.storage import location
from pipeline.mining.manifest import TripletsManifest, read_manifest, store_of
from pipeline.mining.mined import Mined
from pipeline.reporting.neighbours import neighbours
from pipeline.reporting.suspects import among_others

LOOKED_AT = 512  # rows
NEGATIVES = 64  # drawn for each
MARGIN = 0.2  # of what counts as active here, whatever the mining's
MOST_MET = 0.2  # of the classes, in one pack: with .02 of them mining paid, with .38 it lost
LEAST_PACKED = 0.75  # of the rows that a round embedded, in packs: with half of them mining lost, with all it did not
SUSPECTED = 0.15
LEARNED = 0.5  # of embeddings at random more is active: what lies among another class is then no label's fault


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What the embeddings of a round say; shares of 0 to 1, of LOOKED_AT rows.

    active: of random triplets, those with a loss at MARGIN; semi_hard: those whose negative is farther than the
    positive, too. pure: of rows, those whose nearest row is of their class. suspected: those that lie among another
    class, as `suspects` has it. classes_met: classes in a pack, over all. packed: rows of the round's packs, over those
    that were embedded for it.
    """

    active: float
    semi_hard: float
    pure: float
    suspected: float
    classes_met: float
    packed: float


Answer = Literal["mine", "in-batch is enough", "embed fewer rows", "clean labels first"]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """answer: what to expect of mining at this checkpoint."""

    answer: Answer
    signals: Signals

    @property
    def why(self) -> str:
        found = self.signals
        if self.answer == "clean labels first":
            return f"{found.suspected:.0%} of rows lie among another class; see suspected-labels.tsv of the report"
        if self.answer == "embed fewer rows":
            return f"packs hold {found.packed:.2g} times the embedded rows; see --packs spread --anchors"
        met = f"a pack holds {100 * found.classes_met:.3g}% of the classes"
        return met if self.answer != "mine" else f"{met}, {found.active:.1%} of random triplets teach"

    def __str__(self) -> str:
        return f"  {'does mining pay here?':<22}{self.answer}: {self.why} (docs/does-it-pay.md)"


def advise(store: EmbeddingStore, manifest: TripletsManifest) -> Advice:
    """For a mined round and its embeddings, all of them."""
    found = signals(store, manifest)
    return Advice(answer=answer(found), signals=found)


@dataclass(frozen=True, kw_only=True)
class Advised(Mined):
    """What the command `mine` says: the round, and what is to be expected of it. advice: None if embeddings have been
    removed since, or are damaged."""

    advice: Advice | None

    def __str__(self) -> str:
        *lines, last = super().__str__().splitlines()
        return "\n".join([*lines, *([str(self.advice)] if self.advice else []), last])


def advised(mined: Mined) -> Advised:
    run_dir = location(mined.run_dir)
    corpus, round = Corpus.open(run_dir), Run(run_dir).round(mined.round)
    manifest = read_manifest(round, corpus)
    store = store_of(round, corpus, manifest)
    whole = not store.removed() and all(map(store.has, range(store.files)))
    return Advised(**vars(mined), advice=advise(store, manifest) if whole else None)


def answer(found: Signals, most_met: float = MOST_MET) -> Answer:
    if found.suspected > SUSPECTED and found.active <= LEARNED:
        return "clean labels first"
    if found.classes_met > most_met:
        return "in-batch is enough"
    return "mine" if found.packed >= LEAST_PACKED else "embed fewer rows"


def signals(store: EmbeddingStore, manifest: TripletsManifest) -> Signals:
    split, rng = store.whole, np.random.default_rng(manifest.round)
    drawn = np.sort(rng.permutation(store.split.rows)[:LOOKED_AT])
    rows = store.split.number_of(drawn)
    d_ap, d_an = _random_triplets(store, drawn, rng)
    active, count = d_an < d_ap + MARGIN, max(1, d_an.size)
    found = neighbours(store, rows)
    pure = split.class_of(found[0][:, 0]) == split.class_of(rows)
    packing = manifest.packing
    classes = split.classes  # of all rows, though a part be embedded: in-batch training draws from all
    met = min(classes, 2 if packing.lone else packing.pack_rows // packing.fill)
    return Signals(
        active=float(active.sum() / count), semi_hard=float((active & (d_an > d_ap)).sum() / count),
        pure=float(pure.mean()),
        suspected=sum(1 for _ in among_others(split, rows, found)) / len(rows), classes_met=met / classes,
        packed=manifest.rows / store.split.rows,
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
