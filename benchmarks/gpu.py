"""The exact scan on a GPU: proved against whole numbers and against numba, then timed.

    make bench-gpu                                       TensorFlow's GPU
    KERAS_BACKEND=jax python -m benchmarks.gpu           JAX's

Needs NumPy, SciPy, numba, threadpoolctl, and Keras with TensorFlow or JAX; no Beam. All data are generated. Without a
GPU corpora are smaller, and times have no bounds.
"""

import argparse
import os
import platform
import sys
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from benchmarks.table import Row, finish, installed, paired, seconds, show
from benchmarks.vectors import BOTH, Corpus, clustered, normalise
from pipeline.triplets import device
from pipeline.triplets.rows import GRID, Found
from pipeline.triplets.rule import Rule
from pipeline.triplets.scan import choose

SEMI_HARD, HARD = (("semi-hard", 1.0),), (("hard", 1.0),)
RULES: list[dict[str, object]] = [  # each with both picks: 20 combinations
    {"shares": SEMI_HARD},
    {"shares": HARD},
    {"shares": BOTH},
    {"shares": SEMI_HARD, "positives": 4, "margin": 0.5},
    {"shares": BOTH, "positives": 4},
    {"shares": SEMI_HARD, "positives": 2, "min_negative_distance": 0.5},
    {"shares": BOTH, "positives": 2, "min_negative_ratio": 0.95},
    {"shares": BOTH, "positives": 2, "min_negative_distance": 0.5, "min_negative_ratio": 0.95, "seed": 1},
    {"shares": BOTH, "positives": 2, "identities": True},
    {"shares": HARD, "positives": 2, "identities": True, "min_negative_distance": 0.5, "margin": 1.0},
]
CORES = os.cpu_count() or 1


def scan(corpus: Corpus, columns: device.Columns | list[device.Columns]) -> Found:
    """On the device. columns: the corpus' own there, in one piece for `nearest` and a block each for `random`."""
    if isinstance(columns, list):
        return device.scan_random(corpus.rule, corpus.pairs, 0, columns.__getitem__, len(columns))
    return device.scan_nearest(corpus.rule, corpus.pairs, columns)


def uploaded(corpus: Corpus) -> device.Columns | list[device.Columns]:
    if corpus.rule.pick == "nearest":
        return device.upload(corpus.columns)
    return [device.upload([block]) for block in corpus.columns]


# ---- Proofs. ----


def hostile_vectors(rows: int, dim: int) -> np.ndarray:
    """float32 [rows, dim] on the grid: vectors of all directions, of few large coordinates, and of one that takes all
    11 bits."""
    rng = np.random.default_rng(dim)
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    vectors[rows // 3 :] **= 5
    vectors = normalise(vectors)
    last = vectors[-rows // 8 :]
    last[:] = 0
    axis = rng.integers(0, dim - 1, len(last))
    signs = rng.choice(np.float32([-1, 1]), (2, len(last)))
    last[np.arange(len(last)), axis] = signs[0] * np.float32(2047 / GRID)
    last[np.arange(len(last)), axis + 1] = signs[1] * np.float32(63 / GRID)
    return rng.permutation(vectors)


def against_whole_numbers(dim: int) -> Iterator[Row]:
    """A tile's products, and the nearest rows that the scan finds, against int64."""
    label = np.arange(4096) // 16
    embedding = hostile_vectors(4096, dim)
    whole = (embedding * GRID).astype(np.int64)
    exact = whole[:1024] @ whole.T
    product = device.by_xla(lambda left, right: ops.cast(ops.matmul(left, ops.transpose(right)) * GRID**2, "int32"))
    found = ops.convert_to_numpy(product(embedding[:1024], embedding))
    wrong = int((found != exact).sum())
    yield Row(what=f"1,024 x 4,096 x {dim}: products other than int64's", value=wrong, bound=0)

    corpus = Corpus(Rule(shares=HARD, pick="nearest"), label, embedding, np.arange(1024))
    nearest = scan(corpus, uploaded(corpus))
    exact[label[:1024, None] == label] = -(2**40)
    wrong = int((nearest.row[:, 0] != exact.argmax(axis=1)).sum())
    wrong += int((nearest.similarity[:, 0] * GRID**2 != exact.max(axis=1)).sum())
    yield Row(what=f"1,024 x 4,096 x {dim}: nearest rows other than int64's", value=wrong, bound=0)


def against_numba(rows: int, dim: int, anchors: int, rules: list[dict[str, object]]) -> Row:
    """How many of the rules give other triplets, or count something else."""
    label, embedding = clustered(rows, dim, rows // 20, 1.0)
    rng = np.random.default_rng(1)
    embedding[rng.integers(0, rows, rows // 50)] = embedding[rng.integers(0, rows, rows // 50)]  # copies
    group = rng.integers(-1, rows // 30, rows)
    _, content = np.unique(embedding, axis=0, return_inverse=True)
    some, other, triplets = np.linspace(0, rows - 1, anchors).astype(np.int64), 0, 0
    for options in rules:
        codes = {"content": content.ravel().astype(np.int64), "group": group} if options.get("identities") else {}
        rule = Rule(**{name: value for name, value in options.items() if name != "identities"})  # type: ignore[arg-type]
        corpus = Corpus(rule, label, embedding, some, **codes)
        mined = [choose(rule, corpus.pairs, found) for found in (corpus.scan(CORES), scan(corpus, uploaded(corpus)))]
        columns = [vars(one) for one, _ in mined]
        same = all(np.array_equal(columns[0][name], columns[1][name]) for name in columns[0])
        other += not (same and mined[0][1] == mined[1][1])
        triplets += len(mined[0][0])
    what = f"{anchors:,} x {rows:,} x {dim}: of {len(rules)} rules, triplets other than numba's"
    return Row(what=what, value=other, bound=0, note=f"{triplets:,} triplets")


# ---- Times. ----


@device.by_xla
def product_alone(anchors: keras.KerasTensor, columns: keras.KerasTensor) -> keras.KerasTensor:
    """[A, dim], [B, C, dim]: every tile is written, one corner comes back."""
    tile = ops.zeros((anchors.shape[0], columns.shape[1]))
    return ops.fori_loop(
        0, columns.shape[0], lambda number, _: ops.matmul(anchors, ops.transpose(columns[number])), tile
    )[:1, :1]


@device.by_xla
def nearest_hundred(anchors: keras.KerasTensor, columns: keras.KerasTensor) -> keras.KerasTensor:
    """[A, dim], [B, C, dim]: the 100 largest similarities of each anchor, without their rows."""

    def visit(number: object, best: keras.KerasTensor) -> keras.KerasTensor:
        tile = ops.matmul(anchors, ops.transpose(columns[number]))
        return ops.top_k(ops.concatenate([best, tile], axis=1), 100)[0]

    return ops.fori_loop(0, columns.shape[0], visit, ops.full((anchors.shape[0], 100), -2.0))


def over_product(rows: int, on_gpu: bool) -> Iterator[Row]:
    """`nearest`, P = 1, every row an anchor, over the product alone, without padding and in the faster of two kinds of
    tiles; some anchors over a top_k and over numba."""
    label, embedding = clustered(rows, 64, rows // 20, 1.0)
    rule, count = Rule(pick="nearest"), device.ANCHORS[1]
    corpus, one_tile = Corpus(rule, label, embedding), Corpus(rule, label, embedding, np.arange(count))
    columns = uploaded(corpus)
    shapes = [(count, 5_000), (count // 4, 25_000)]
    sides = []
    for height, width in shapes:
        parts = [ops.convert_to_tensor(embedding[start : start + height]) for start in range(0, rows, height)]
        sides.append((parts, ops.convert_to_tensor(embedding.reshape(-1, width, 64))))

    def product(shape: int) -> None:
        parts, right = sides[shape]
        for corner in [product_alone(part, right) for part in parts]:
            ops.convert_to_numpy(corner)

    for parts, right in sides:  # compiled for whole tiles and for the last one
        ops.convert_to_numpy(product_alone(parts[0], right) + product_alone(parts[-1], right))
    scan(one_tile, columns)
    fastest = min((0, 1), key=lambda shape: seconds(lambda: product(shape), 1)[0])
    ratio, ours, bare = paired(lambda: scan(corpus, columns), lambda: product(fastest), 3)
    what = f"scan {rows:,} x {rows:,} x 64, nearest, P = 1, over its product alone"
    note = f"{ours:.2f} s, in tiles of {shapes[fastest][0]:,} x {shapes[fastest][1]:,} {bare:.2f} s"
    yield Row(what=what, value=ratio, bound=3.0 if on_gpu else None, note=note)

    some = np.linspace(0, rows - 1, count if on_gpu else count // 8).astype(np.int64)
    part, left, right = Corpus(rule, label, embedding, some), ops.convert_to_tensor(embedding[some]), sides[0][1]
    scan(part, columns)
    ops.convert_to_numpy(nearest_hundred(left, right))
    ratio, ours, theirs = paired(
        lambda: scan(part, columns), lambda: ops.convert_to_numpy(nearest_hundred(left, right)), 3
    )
    what, note = f"{len(some):,} anchors, over matmul with top_k of 100, values only", f"{ours:.3f} s, {theirs:.2f} s"
    yield Row(what=what, value=ratio, bound=1.0 if on_gpu else None, note=note)
    for pick in ("nearest", "random"):
        part = Corpus(Rule(pick=pick), label, embedding, some)
        columns = uploaded(part)
        scan(part, columns)
        ratio, ours, theirs = paired(lambda: scan(part, columns), lambda: part.scan(CORES), 3)  # noqa: B023  called here
        note = f"{ours:.3f} s, {theirs:.3f} s"
        yield Row(what=f"{len(some):,} anchors, {pick}, over numba on {CORES} cores", value=ratio, note=note)


def device_name() -> str:
    """What Keras' backend computes with, as one says it."""
    if keras.backend.backend() == "jax":
        import jax

        return str(jax.devices()[0].device_kind)
    from pipeline.embedding import machine

    return machine.device_name()


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    on_gpu = keras.distribution.list_devices()[0].startswith("gpu")
    versions = installed("keras", keras.backend.backend(), "jaxlib", "numpy", "numba", "scipy")
    print(f"{device_name()}; {', '.join(f'{name} {number}' for name, number in versions.items())}", flush=True)
    rows, skipped = [], []

    def add(row: Row) -> None:
        rows.append(row)
        show(row)

    for dim in (64, 256):
        for row in against_whole_numbers(dim):
            add(row)
    rules = [rule | {"pick": pick} for rule in RULES for pick in ("nearest", "random")]
    if on_gpu:
        add(against_numba(70_000, 64, 70_000, rules))
        add(against_numba(300_000, 256, 5_000, [rules[4], rules[5], rules[16]]))
    else:
        add(against_numba(5_000, 64, 5_000, rules))
        add(against_numba(5_000, 256, 5_000, rules))
        skipped = ["70,000 x 70,000 x 64: 20 rules", "5,000 x 300,000 x 256: 3 rules", "1,000,000 x 1,000,000 x 64"]
        for what in skipped:
            print(f"{what:<68}  skipped: Keras' {keras.backend.backend()} sees no GPU here", flush=True)
    for row in over_product(1_000_000 if on_gpu else 50_000, on_gpu):
        add(row)
    return finish(
        "gpu", rows, versions, device=device_name(), backend=keras.backend.backend(), system=platform.platform(),
        skipped=skipped,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
