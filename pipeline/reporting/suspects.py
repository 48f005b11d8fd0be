"""Which labels look wrong."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.corpus.corpus import Split
from pipeline.embedding.store import EmbeddingStore
from pipeline.reporting.confusion import count_pairs
from pipeline.reporting.neighbours import NEAR, Neighbours, neighbours
from pipeline.reporting.sample import Pairs, first_of_each

CANDIDATES = 512  # rows whose neighbours are looked up
UNCHECKED = 50  # candidates that are listed where there are no embeddings


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A row that lies among another class.

    label, looks_like: the class it has, and the one it lies among. copy: its payload is that of `nearest`.
    anchors: how many different anchors of `looks_like` it is the negative of in the sample. Where there are
    embeddings: of the `neighbours` rows nearest to it, `own` have its label and `other` have `looks_like`; d_own,
    d_other: its mean distance to the NEAR nearest rows of each; nearest: the nearest of `looks_like`.
    """

    row: int
    label: int
    looks_like: int
    anchors: int
    neighbours: int = 0
    own: int = 0
    other: int = 0
    d_own: float = 0.0
    d_other: float = 0.0
    nearest: int | None = None
    copy: bool = False


def suspects(pairs: Pairs, split: Split, store: EmbeddingStore | None) -> list[Suspect]:
    """Rows whose label looks wrong, the most suspicious first.

    Candidates are the CANDIDATES rows that are the negative of the most anchors of one class. They stay if more than
    half of their neighbours have one other label (asked about as many as their class has other rows, at most
    NEIGHBOURS) and it is nearer than their own, d_other < d_own; the order is that of d_other / d_own. Without
    embeddings it is the first UNCHECKED candidates. Classes of up to NEAR rows are left out: neighbours say little.
    """
    negative, anchor, _ = count_pairs(pairs.negative, pairs.anchor)
    row, of, anchors = count_pairs(negative, split.class_of(anchor))
    most = np.lexsort((of, row, -anchors))
    most = most[first_of_each(row[most])][:CANDIDATES]
    if store is None:
        return [
            Suspect(row=int(row[i]), label=int(split.class_of(row[i])), looks_like=int(of[i]), anchors=int(anchors[i]))
            for i in most[:UNCHECKED]
        ]
    negative_of = dict(zip(zip(row.tolist(), of.tolist(), strict=True), anchors.tolist(), strict=True))
    candidates = np.sort(row[most])
    listed = [
        replace(suspect, anchors=negative_of.get((suspect.row, suspect.looks_like), 0))
        for suspect in among_others(split, candidates, neighbours(store, candidates))
    ]
    return sorted(listed, key=lambda s: (s.d_other / max(s.d_own, 1e-9), -s.anchors, s.row))


def among_others(split: Split, rows: np.ndarray, found: Neighbours) -> Iterator[Suspect]:
    """Those of the rows that lie among another class. found: their `neighbours`."""
    labels, size = split.class_of(rows).tolist(), np.diff(split.first_rows)
    for row, own, nearest, distance, d_own in zip(rows.tolist(), labels, *found, strict=True):
        if np.isinf(d_own).any():
            continue
        nearest = nearest[: size[own] - 1]
        around = split.class_of(nearest)
        counts = np.bincount(around)
        other = int(counts.argmax())
        of_other = np.flatnonzero(around == other)
        d_other = float(distance[of_other[:NEAR]].mean())
        if other != own and 2 * len(of_other) > len(nearest) and d_other < d_own.mean():
            yield Suspect(
                row=row, label=own, looks_like=other, anchors=0, neighbours=len(nearest),
                own=int((around == own).sum()), other=len(of_other), d_own=float(d_own.mean()), d_other=d_other,
                nearest=int(nearest[of_other[0]]),
            )  # fmt: skip


def with_conflicts(listed: list[Suspect], split: Split) -> list[Suspect]:
    """Suspects, first of all rows whose payload is there under another label too: one of the two is wrong.

    Of these at most CANDIDATES; those first that lie among the other class.
    """
    copy_of: dict[int, int] = {}
    for number in range(len(split.shards)):
        rows = np.arange(split.shard_rows[number], split.shard_rows[number + 1])
        first = np.asarray(split.index(number)["content"])
        there = split.class_of(rows) != split.class_of(first)
        copy_of |= dict(zip(rows[there].tolist(), first[there].tolist(), strict=True))
        copy_of |= {other: row for row, other in copy_of.items() if other not in copy_of}
        if len(copy_of) >= CANDIDATES:
            break
    known = {suspect.row: suspect for suspect in listed}
    conflicts = []
    for row, other in list(copy_of.items())[:CANDIDATES]:
        label, looks_like = split.class_of(np.array([row, other])).tolist()
        suspect = known.pop(row, Suspect(row=row, label=label, looks_like=looks_like, anchors=0))
        conflicts.append(replace(suspect, nearest=other, copy=True))
    return sorted(conflicts, key=lambda s: not s.neighbours) + list(known.values())
