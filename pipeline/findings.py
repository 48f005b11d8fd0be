"""What a round's packs and embeddings say: its triplets, which classes are confused, which labels look wrong.

A sample of bounded size: packs in their order, the same ones each time. Packs of a shard are in hash order, so its
first ones are as good as any.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import records
from pipeline.records import InputError, Split

READ_ROWS = 1 << 16  # of packs, counted as often as they are in one
READ_TRIPLETS = 1 << 19
READ_BYTES = 64 << 20
READ_SHARDS = 64
MEND = "Restore it, or remove {} and mine that round again."
NEIGHBOURS = 10
NEAR = 3  # of a class, for the distance to it
LEAST_NEIGHBOURS = 3  # fewer say little of a label: classes of up to three rows are left out
CANDIDATES = 512  # rows whose neighbours are looked up
LOOKED_AT = 4096  # rows whose nearest others are looked up where packs are spread
UNCHECKED = 50  # candidates that are listed where there are no embeddings
NEIGHBOUR_ROWS = 1 << 18  # among which they are looked up


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Triplets of the packs that were read.

    anchor, positive, negative: int64 [t], rows of the train split. d_ap, d_an: float32 [t]. kind, scope: int64 [t],
    positions in the manifest's `kinds` and `scopes`. ids: of the rows in these packs. packs, rows: how many were read,
    rows as often as they are in a pack.
    """

    anchor: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    d_ap: np.ndarray
    d_an: np.ndarray
    kind: np.ndarray
    scope: np.ndarray
    ids: dict[int, str]
    packs: int
    rows: int

    @property
    def gap(self) -> np.ndarray:
        return self.d_an - self.d_ap


def packs_to_read(manifest: dict[str, Any]) -> int:
    """How many packs fit the bounds above, going by the average pack; one at the least."""
    of_all = {
        READ_ROWS: manifest["rows"], READ_TRIPLETS: manifest["triplets"],
        READ_BYTES: sum(shard["bytes"] for shard in manifest["shards"]),
    }  # fmt: skip
    share = min(bound / max(1, total) for bound, total in of_all.items())
    return max(1, min(int(manifest["packs"]), math.floor(share * manifest["packs"])))


def read_sample(directory: Path, manifest: dict[str, Any], packs: int) -> Sample:
    """Reads about that many packs of a mined round, out of shards that lie evenly over all.

    Raises:
      InputError: a shard is missing, damaged, or shorter than the manifest says.
    """
    shards = [shard for shard in manifest["shards"] if shard["records"]]
    if packs < manifest["packs"]:
        step = math.ceil(len(shards) / min(packs, READ_SHARDS))
        shards = shards[::step]
    of_each = [math.ceil(packs / len(shards))] * len(shards) if packs < manifest["packs"] else [math.inf] * len(shards)
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("anchor", "positive", "negative", "d_ap", "d_an", "kind", "scope")
    }
    ids: dict[int, str] = {}
    count = rows = 0
    for shard, most in zip(shards, of_each, strict=True):
        for pack in _packs(directory / shard["file"], int(min(most, shard["records"]))):
            row = pack["row"]
            ids.update(zip(row.tolist(), (id.decode() for id in pack["id"]), strict=True))
            for name, parts in columns.items():
                parts.append(row[pack[name]] if name in ("anchor", "positive", "negative") else pack[name])
            count, rows = count + 1, rows + len(row)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Sample(**joined, ids=ids, packs=count, rows=rows)


def _packs(path: Path, count: int) -> Iterator[dict[str, Any]]:
    if not path.exists():
        raise InputError(f"{path} is missing, triplets.json lists it. {MEND.format(path.parent)}")
    found = 0
    for record in itertools.islice(records.read_records(path), count):
        found += 1
        yield records.parse_example(record)
    if found < count:
        raise InputError(f"{path} ends after {found} records, triplets.json lists more. {MEND.format(path.parent)}")


def nearest_others(split: Split, embeddings: Path, seed: int) -> Sample | None:
    """LOOKED_AT rows drawn at random, each as the anchor of the NEAR nearest rows of other classes.

    What triplets tell of classes and labels is told by this where packs keep near classes apart (`--packs spread`).
    None if not every embedding is there.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(split.rows)[:LOOKED_AT])
    found = []
    for some in np.array_split(rows, -(-len(rows) // CANDIDATES)):
        near = neighbours(split, embeddings, some, others=True)
        if near is None:
            return None
        found.append((near[0][:, :NEAR], near[1][:, :NEAR]))
    negative, d_an = (np.concatenate(parts) for parts in zip(*found, strict=True))
    anchor = np.repeat(rows, negative.shape[1])
    there = np.isfinite(d_an.ravel())
    anchor, negative, d_an = anchor[there], negative.ravel()[there], d_an.ravel()[there]
    none = np.zeros(len(anchor), np.int64)
    return Sample(
        anchor=anchor, positive=anchor, negative=negative, d_ap=np.zeros_like(d_an), d_an=d_an, kind=none, scope=none,
        ids={}, packs=0, rows=len(rows),
    )  # fmt: skip


# ---- Which triplets to show. ----


def drawn(sample: Sample, count: int, seed: int) -> np.ndarray:
    """int64 [count or fewer]: triplets drawn at random, no anchor twice."""
    order = np.random.default_rng(seed).permutation(len(sample.anchor))
    return order[_first_of_each(sample.anchor[order])][:count]


def closest(sample: Sample, label: np.ndarray, count: int) -> np.ndarray:
    """int64 [count or fewer]: triplets with the smallest d_an - d_ap, no pair of classes twice.

    Args:
      label: int64 [t, 2], the classes of anchor and negative.
    """
    order = np.lexsort((sample.negative, sample.positive, sample.anchor, sample.gap))
    pair = np.sort(label[order], axis=1)
    return order[_first_of_each(pair[:, 0] * (label.max(initial=0) + 1) + pair[:, 1])][:count]


def _first_of_each(values: np.ndarray) -> np.ndarray:
    """int64: where each value comes first, ascending."""
    return np.sort(np.unique(values, return_index=True)[1])


# ---- Which classes are confused. ----


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Two classes, a < b. triplets: how many have an anchor of one and a negative of the other; share: of all whose
    anchor is of either. examples: those with the smallest d_an, no row twice."""

    a: int
    b: int
    triplets: int
    share: float
    examples: list[int]


def _confused_pairs(label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64: of each pair of classes, the ones with most triplets first, the lower class, the higher, and triplets."""
    a, b, counts = _count_pairs(label.min(axis=1), label.max(axis=1))
    order = np.argsort(-counts, kind="stable")
    return a[order], b[order], counts[order]


def _count_pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64: the different pairs, ascending, and how often each is there. One number a pair: rows as keys are slow."""
    base = int(b.max(initial=0)) + 1
    values, counts = np.unique(a * base + b, return_counts=True)
    return values // base, values % base, counts


def confusions(sample: Sample, label: np.ndarray, count: int, examples: int) -> list[Confusion]:
    """The pairs of classes with the most triplets between them.

    Args:
      label: int64 [t, 2], the classes of anchor and negative.
    """
    anchors = np.bincount(label[:, 0], minlength=label.max(initial=-1) + 1)
    found = []
    for a, b, triplets in zip(*(column[:count].tolist() for column in _confused_pairs(label)), strict=True):
        where = np.flatnonzero((label.min(axis=1) == a) & (label.max(axis=1) == b))
        where = where[np.lexsort((sample.negative[where], sample.anchor[where], sample.d_an[where]))]
        chosen: list[int] = []
        seen: set[int] = set()
        for triplet in where.tolist():
            rows = {int(sample.anchor[triplet]), int(sample.negative[triplet])}
            if not rows & seen:
                chosen.append(triplet)
                seen |= rows
            if len(chosen) == examples:
                break
        share = triplets / int(anchors[a] + anchors[b])
        found.append(Confusion(a=a, b=b, triplets=triplets, share=share, examples=chosen))
    return found


def confusion_matrix(label: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the classes in the most confused pairs, who is taken for whom.

    Args:
      label: int64 [t, 2], the classes of anchor and negative.
    Returns:
      int64 [c], at most `most` classes, alike ones beside each other; int64 [c, c], triplets by class of the anchor
      (row) and of the negative (column).
    """
    a, b, _ = _confused_pairs(label)
    both = np.stack([a, b], axis=1).ravel()
    classes = np.sort(both[_first_of_each(both)][:most])
    inside = np.isin(label, classes).all(axis=1)
    place = np.searchsorted(classes, label[inside])
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, (place[:, 0], place[:, 1]), 1)
    if len(classes) > 2:
        from scipy.cluster.hierarchy import leaves_list, linkage
        from scipy.spatial.distance import squareform

        apart = 1.0 / (1 + matrix + matrix.T)
        np.fill_diagonal(apart, 0)
        order = leaves_list(linkage(squareform(apart), "average", optimal_ordering=True))
        classes, matrix = classes[order], matrix[np.ix_(order, order)]
    return classes, matrix


# ---- Which labels look wrong. ----


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


def suspects(sample: Sample, split: Split, embeddings: Path) -> tuple[list[Suspect], bool]:
    """Rows whose label looks wrong, the most suspicious first.

    Candidates are the CANDIDATES rows that are the negative of the most anchors of one class. They stay if more than
    half of their neighbours have one other label (asked about as many as their class has other rows, at most
    NEIGHBOURS) and it is nearer than their own, d_other < d_own; the order is that of d_other / d_own. Where no
    embeddings are found (the round saw a pool of classes, or somebody removed them) it is the first UNCHECKED
    candidates.

    Returns:
      the suspects; whether neighbours were looked at.
    """
    negative, anchor, _ = _count_pairs(sample.negative, sample.anchor)
    row, of, anchors = _count_pairs(negative, split.class_of(anchor))
    most = np.lexsort((of, row, -anchors))
    most = most[_first_of_each(row[most])][:CANDIDATES]
    label = split.class_of(row[most])
    found = neighbours(split, embeddings, row[most])
    if found is None:
        return [
            Suspect(row=int(row[i]), label=int(own), looks_like=int(of[i]), anchors=int(anchors[i]))
            for i, own in zip(most[:UNCHECKED], label, strict=False)
        ], False
    negative_of = dict(zip(zip(row.tolist(), of.tolist(), strict=True), anchors.tolist(), strict=True))
    size = np.diff(split.first_rows)
    listed = []
    for candidate, own, rows, distance, d_own in zip(row[most].tolist(), label.tolist(), *found, strict=True):
        rows = rows[: int(size[own]) - 1]
        if len(rows) < LEAST_NEIGHBOURS:
            continue
        around = split.class_of(rows)
        classes, counts = np.unique(around, return_counts=True)
        other = int(classes[counts.argmax()])
        of_other = around == other
        d_other = float(distance[: len(rows)][of_other][:NEAR].mean())
        if other != own and 2 * counts.max() > len(rows) and d_other < d_own.mean():
            listed.append(
                Suspect(
                    row=candidate, label=own, looks_like=other, anchors=negative_of.get((candidate, other), 0),
                    neighbours=len(rows), own=int((around == own).sum()), other=int(of_other.sum()),
                    d_own=float(d_own.mean()), d_other=d_other, nearest=int(rows[of_other][0]),
                )
            )  # fmt: skip
    return sorted(listed, key=lambda s: (s.d_other / max(s.d_own, 1e-9), -s.anchors, s.row)), True


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


def neighbours(
    split: Split, embeddings: Path, rows: np.ndarray, others: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """What lies nearest to rows of a split; None if not every embedding is there. others: of other labels only.

    Of a split larger than NEIGHBOUR_ROWS every second (third ...) row is looked at, which keeps the classes' shares.

    Returns:
      int64 [n, NEIGHBOURS], the nearest rows in order; float32 of the same shape, their distances; float32 [n, NEAR],
      the distances of the nearest rows of the same label. Fewer where the split has fewer.
    """
    paths = [embeddings / shard["file"].replace(".tfrecord", ".npy") for shard in split.shards]
    if not len(rows) or not all(path.exists() for path in paths):
        return None
    arrays = [_embeddings(path, shard["records"]) for path, shard in zip(paths, split.shards, strict=True)]
    queries, own = np.empty((len(rows), arrays[0].shape[1]), np.float32), split.class_ranges(rows)
    for number, where, places in split.by_shard(rows):
        queries[where] = arrays[number][places]
    step = math.ceil(split.rows / NEIGHBOUR_ROWS)
    distance, nearest = np.empty((len(rows), 0), np.float32), np.empty((len(rows), 0), np.int64)
    d_own, of_own = distance, nearest
    for number, array in enumerate(arrays):
        first, last = split.shard_rows[number], split.shard_rows[number + 1]
        columns = np.arange(-(-first // step) * step, last, step)
        block = 2 - 2 * (queries @ np.asarray(array[columns - first]).T)
        block[rows[:, None] == columns] = np.inf  # itself
        classmates = (columns >= own[:, :1]) & (columns < own[:, 1:])
        of_any = np.where(classmates, np.inf, block) if others else block
        distance, nearest = _smallest(distance, nearest, of_any, columns, NEIGHBOURS)
        block[~classmates] = np.inf
        d_own, of_own = _smallest(d_own, of_own, block, columns, NEAR)
    return nearest, distance, d_own


def _embeddings(path: Path, rows: int) -> np.ndarray:
    try:
        array = records.open_array(path)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is no array: {error}. Remove {path.parent}: the report does without it.") from None
    if array.ndim != 2 or len(array) != rows:
        raise InputError(f"{path} has shape {array.shape}, expected {rows} rows. Remove {path.parent}.")
    return array


def _smallest(
    value: np.ndarray, where: np.ndarray, block: np.ndarray, columns: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` smallest of each row of two arrays side by side, in order, and their columns."""
    value = np.concatenate([value, block], axis=1)
    where = np.concatenate([where, np.broadcast_to(columns, block.shape)], axis=1)
    count = min(count, value.shape[1])
    order = np.argpartition(value, count - 1, axis=1)[:, :count]
    order = np.take_along_axis(order, np.argsort(np.take_along_axis(value, order, axis=1), axis=1), axis=1)
    return np.take_along_axis(value, order, axis=1), np.take_along_axis(where, order, axis=1)
