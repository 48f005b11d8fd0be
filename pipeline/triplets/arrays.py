"""Mining in memory: arrays in, triplets out."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.errors import InputError, at_least_one
from pipeline.triplets.columns import column_block_of, column_blocks
from pipeline.triplets.pairs import draw_positives, make_pairs
from pipeline.triplets.rows import Block, Triplets, to_grid
from pipeline.triplets.rule import KINDS, Rule
from pipeline.triplets.scan import choose, scan_nearest, scan_random


@dataclass(frozen=True, kw_only=True)
class MinedTriplets(Triplets):
    """Triplets of arrays: anchor, positive and negative are positions in them.

    counts: `pairs` that were tried, `fallback`, `guarded`, `anchors_without_positive` and `no_<kinds>_negative`, as
    `pipeline.triplets.scan.choose` counts them.
    """

    counts: dict[str, int]

    def to_pandas(self) -> Any:
        """A pandas.DataFrame, a row a triplet, kind by name."""
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("anchor", "positive", "negative", "d_ap", "d_an")}
        return pd.DataFrame({**columns, "kind": np.array(KINDS)[self.kind]})


def mine_triplets(
    embeddings: Any,
    labels: Any,
    *,
    kind: str | Mapping[str, float] = "semi-hard",
    margin: float = 0.2,
    pick: Literal["random", "nearest"] = "random",
    positives: int = 1,
    seed: int = 0,
    min_negative_distance: float = 0.0,
    min_negative_ratio: float = 0.0,
    groups: Any = None,
    contents: Any = None,
    threads: int | None = None,
) -> MinedTriplets:
    """Mines arrays, without files: every row is an anchor, every other row a candidate.

    Given rows in the order of a run directory's train split, these are the triplets of scope corpus that
    `pipeline.mine` selects with the same options.

    Args:
      embeddings: numbers [n, dim], of NumPy, TensorFlow or PyTorch; L2-normalised here.
      labels: [n], of any type that NumPy sorts.
      kind: semi-hard, hard, or kinds with the shares of the pairs that try each first: {"semi-hard": 3, "hard": 1}.
      margin, pick, positives, seed, min_negative_distance, min_negative_ratio: see `pipeline.triplets.rule.Rule`.
      groups: [n], rows of one group are not each other's negatives; None or NaN for a row without a group.
      contents: [n], equal for copies, which are neither each other's positives nor negatives.
      threads: None for as many as there are cores.
    Raises:
      InputError: for a shape that is not as above, a label that is missing, a row that is zero or not finite, or an
        option out of its range.

    >>> found = mine_triplets([[1, 0], [0.9, 0.4], [0.6, 0.8], [0, 1]], ["a", "a", "b", "b"], margin=1.0)
    >>> found.anchor.tolist(), found.positive.tolist(), found.negative.tolist()
    ([0, 1, 2, 3], [1, 0, 3, 2], [2, 2, 0, 1])
    """
    rule = Rule(
        shares=kind_shares(kind), margin=margin, pick=pick, positives=positives, seed=seed,
        min_negative_distance=min_negative_distance, min_negative_ratio=min_negative_ratio,
    )  # fmt: skip
    at_least_one(threads=threads)
    vectors, label = normalised(embeddings), codes_of("label", labels)
    if label.shape != vectors.shape[:1]:
        raise InputError(f"expected embeddings [n, dim] and labels [n]; found {vectors.shape}, {label.shape}")
    refuse_missing(label)
    order = np.argsort(label, kind="stable")  # a class is a range of rows
    rows, label = np.arange(len(order)), label[order]
    of_rows = {
        name: codes_of(name, given) for name, given in (("group", groups), ("content", contents)) if given is not None
    }
    for name, codes in of_rows.items():
        if codes.shape != rows.shape:
            raise InputError(f"expected {name}s [{len(rows)}]; found {codes.shape}")
    corpus = Block(
        row=rows, embedding=to_grid(vectors[order]),
        **{name: codes[order] for name, codes in of_rows.items()},
    )  # fmt: skip
    own = np.stack([np.searchsorted(label, label, side) for side in ("left", "right")], axis=1)
    content = corpus.content
    positive = draw_positives(rule, rows, own, None if content is None else lambda lo, hi: content[lo:hi])
    pairs = make_pairs(rule, corpus, own, positive, corpus.embedding[np.where(positive >= 0, positive, rows[:, None])])
    blocks = column_blocks(len(rows))
    dealt = column_block_of(rule, rows, blocks)
    columns = [corpus.take(dealt == number) for number in range(blocks)]
    threads = threads or os.cpu_count() or 1
    if rule.pick == "random":
        found = scan_random(rule, pairs, 0, columns.__getitem__, blocks, threads)
    else:
        found = scan_nearest(rule, pairs, columns, threads)
    chosen, counts = choose(rule, pairs, found)
    sides = {side: order[getattr(chosen, side)] for side in ("anchor", "positive", "negative")}
    return MinedTriplets(**{**vars(chosen), **sides}, counts=counts)


def refuse_missing(label: np.ndarray) -> None:
    """Raises InputError where codes say that there is no label."""
    missing = np.flatnonzero(label < 0)
    if len(missing):
        raise InputError(f"{len(missing)} labels are None or NaN: rows {missing[:5].tolist()}. Leave these rows out.")


def kind_shares(kind: str | Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Kinds and shares, of one kind's name or of a mapping."""
    pairs = kind.items() if isinstance(kind, Mapping) else [(kind, 1.0)]
    return tuple((str(name), float(share)) for name, share in pairs)


def normalised(embeddings: Any) -> np.ndarray:
    """float32 [n, dim], L2-normalised, of numbers [n, dim].

    Raises:
      InputError: for another shape, a masked array, or a row that is zero or not finite.
    """
    if np.ma.is_masked(embeddings):
        masked = np.ma.count_masked(embeddings)
        raise InputError(f"embeddings have {masked} masked numbers. Fill them, or drop the rows.")
    try:
        vectors = np.asarray(_on_the_host(embeddings), np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"expected embeddings [n, dim], numbers: {error}") from None
    if vectors.ndim != 2:
        raise InputError(f"expected embeddings [n, dim]; found {vectors.shape}")
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0)))
    if len(bad):
        raise InputError(f"{len(bad)} embeddings are zero or not finite: rows {bad[:5].tolist()}")
    unit: np.ndarray = (vectors / norm).astype(np.float32)
    return unit


def _on_the_host(values: Any) -> Any:
    """What NumPy takes: of a PyTorch tensor, which may be on a GPU and want gradients, its numbers."""
    return values.detach().cpu() if hasattr(values, "detach") else values


def _is_missing(value: Any) -> bool:
    """None, NaN, NaT; and pandas' NA, which is equal to nothing and does not say so."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def codes_of(what: str, values: Any) -> np.ndarray:
    """int64 [n]: equal where the values are equal, ordered as they are; -1 for None and NaN."""
    values = _on_the_host(values)
    # Of a list NumPy would make one type: of strings with a NaN among them strings, and "nan" one more class.
    found = np.asarray(values) if hasattr(values, "__array__") else np.array(values, object)
    missing = np.array([_is_missing(value) for value in found.ravel().tolist()], bool)
    codes = np.full(found.size, -1, np.int64)
    try:
        codes[~missing] = np.unique(found.ravel()[~missing], return_inverse=True)[1].ravel()
    except TypeError as error:
        raise InputError(f"{what}s that cannot be ordered: {error}. Give them one type.") from None
    return codes.reshape(found.shape)
