"""Mining in memory: the command's triplets, in whatever order the rows come, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest

from pipeline import mine
from pipeline.corpus.corpus import Corpus
from pipeline.mining.manifest import read_packs
from pipeline.triplets.arrays import mine_triplets


@pytest.mark.parametrize("pick", ["random", "nearest"])
def test_arrays_in_memory_give_the_triplets_of_the_run_directory(fresh_run, pick):
    options = ["--pick", pick, "--positives", "2", "--negatives", "semi-hard,hard", "--pack_rows", "3"]
    assert mine.main(["--run_dir", str(fresh_run), *options]) == 0
    written = {
        tuple(int(pack["row"][pack[side][0]]) for side in ("anchor", "positive", "negative"))
        for pack in read_packs(fresh_run)
    }
    split = Corpus.open(fresh_run).split("train")
    [path] = fresh_run.glob("rounds/0000/embeddings/*/*.npy")
    rule = {"kind": {"semi-hard": 1, "hard": 1}, "pick": pick, "positives": 2}
    # Labels whose order is not that of the rows, and rows that are no longer normalised.
    embeddings, labels = np.load(path) * np.float32(3), split.class_of(np.arange(split.rows))
    found = mine_triplets(embeddings, labels, **rule)
    assert set(zip(found.anchor.tolist(), found.positive.tolist(), found.negative.tolist(), strict=True)) == written
    assert found.counts["pairs"] == 2 * split.rows
    back = np.random.default_rng(0).permutation(split.rows)
    shuffled = mine_triplets(embeddings[back], labels[back], **rule)
    assert (labels[back][shuffled.anchor] == labels[back][shuffled.positive]).all()
    assert (labels[back][shuffled.anchor] != labels[back][shuffled.negative]).all()


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (np.ones((4, 2)), [0, 1], r"found \(4, 2\), \(2,\)"),
        (np.ones(4), [0] * 4, r"found \(4,\)"),
        (np.array([[1.0, 0], [0, 0], [np.nan, 1]]), [0, 0, 1], r"2 embeddings are zero or not finite: rows \[1, 2\]"),
        (np.ma.masked_less(np.eye(3), 1), [0, 1, 1], "6 masked numbers. Fill them"),
        (np.ones((4, 2)), ["a", None, "b", float("nan")], r"2 labels are None or NaN: rows \[1, 3\]. Leave"),
        (np.ones((3, 2)), ["a", float("nan"), "b"], r"1 labels are None or NaN: rows \[1\]"),
        (np.ones((3, 2)), ["a", 1, None], "labels that cannot be ordered.*Give them one type"),
    ],
)
def test_wrong_arrays_are_refused(embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        mine_triplets(embeddings, labels)


def test_groups_and_copies_are_kept_apart():
    rng = np.random.default_rng(0)
    label, group, content = (rng.integers(0, n, 300) for n in (8, 40, 120))
    vectors = rng.standard_normal((120, 6))[content]
    groups = [float("nan") if number < 10 else f"g{number}" for number in group]
    found = mine_triplets(vectors, label, margin=4.0, positives=4, groups=groups, contents=content)
    assert len(found) > 300
    assert (content[found.anchor] != content[found.positive]).all()
    assert (content[found.anchor] != content[found.negative]).all()
    assert ((group[found.anchor] != group[found.negative]) | (group[found.anchor] < 10)).all()
    assert found.counts["guarded"] > 0
    table = found.to_pandas()
    assert list(table) == ["anchor", "positive", "negative", "d_ap", "d_an", "kind"]
    assert set(table["kind"]) == {"semi-hard"} and len(table) == len(found)
    with pytest.raises(ValueError, match=r"expected groups \[300\]; found \(2,\)"):
        mine_triplets(vectors, label, groups=[1, 2])


def test_tensors_are_arrays():
    import tensorflow as tf

    vectors, label = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32), np.arange(60) % 6
    expected = mine_triplets(vectors, label)
    found = mine_triplets(tf.constant(vectors), tf.constant(label))
    np.testing.assert_array_equal(found.negative, expected.negative)


def test_mining_arrays_needs_neither_beam_nor_tensorflow_and_limits_every_blas():
    """numba's np.dot brings a BLAS of its own: loaded after the others were looked for, it would not be limited."""
    code = """
import sys, numpy as np
from threadpoolctl import threadpool_info
from pipeline.triplets.arrays import mine_triplets
from pipeline.triplets.kernels import one_blas_thread
mine_triplets(np.random.default_rng(0).normal(size=(50, 8)), np.arange(50) % 5, pick="nearest")
assert not {"apache_beam", "tensorflow", "keras"} & set(sys.modules)
with one_blas_thread():
    found = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
assert found and set(found) == {1}, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)
