"""Order, shape, splits, copies and shards of keys, without Beam."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.keys import (
    KEYS,
    assign_splits,
    common_shape,
    count_leaks,
    cut_shards,
    describe_split,
    given_triplets,
    order_rows,
)  # fmt: skip
from pipeline.corpus.manifest import SPLITS
from pipeline.corpus.options import IngestOptions

OPTIONS = IngestOptions(source=("digits",))


def table(rows, **columns):
    """Keys of (label, id) pairs; other columns as they are given."""
    defaults = {"sha256": [hashlib.sha256(id.encode()).digest() for _, id in rows], "shape": [[3]] * len(rows)}
    numbers = {name: list(range(len(rows))) for name in ("part", "offset", "length")}
    keys = {"label": [label.encode() for label, _ in rows], "id": [id.encode() for _, id in rows]}
    return pa.Table.from_pydict({name: [None] * len(rows) for name in KEYS.names} | keys | defaults | numbers | columns,
                                schema=KEYS)  # fmt: skip


def sides(ids):
    """Of a pair's rows: what stands behind the slash, without its number."""
    return [id.rpartition("/")[2].partition("-")[0] if "/" in id else None for id in ids]


def pairs(keys):
    return [(row["label"].decode(), row["id"].decode()) for row in keys.to_pylist()]


def test_rows_are_ordered_by_label_and_id_as_utf_8_bytes():
    rows = [("b", "1"), ("ä", "0"), ("a", "2"), ("a", "10"), ("B", "3")]
    keys, rejected = order_rows(table(rows))
    assert pairs(keys) == sorted(rows, key=lambda row: (row[0].encode(), row[1].encode())) and rejected == []


def test_of_a_repeated_id_the_first_is_kept():
    keys, rejected = order_rows(table([("a", "x"), ("b", "x"), ("a", "y"), ("c", "x")], part=[1, 0, 0, 1]))
    assert pairs(keys) == [("a", "y"), ("b", "x")]
    assert [(entry.source, entry.reason) for entry in rejected] == [
        ("x", "the id was there before; the first is kept")
    ] * 2


def test_what_has_a_reason_is_no_row():
    keys, rejected = order_rows(table([("a", "x"), ("", "somewhere")], reason=[None, "empty"]))
    assert pairs(keys) == [("a", "x")] and [str(entry) for entry in rejected] == ["somewhere: empty"]


def test_no_rows_are_none():
    keys, rejected = order_rows(KEYS.empty_table())
    assert len(keys) == 0 and rejected == []


def test_vectors_of_another_length_than_most_are_rejected():
    keys = table([("a", "x"), ("a", "y"), ("b", "z")], shape=[[3], [2], [3]])
    payload, kept, rejected = common_shape(keys, "vector")
    assert payload.shape == (3,) and pairs(kept) == [("a", "x"), ("b", "z")]
    assert [str(entry) for entry in rejected] == ["y: vector of 2 numbers, most have 3"]


@pytest.mark.parametrize(
    ("shapes", "shape"),
    [([[4, 5, 1], [4, 5, 3]], (4, 5, 3)), ([[4, 5, 1], [5, 4, 1]], (None, None, 1))],
)
def test_images_may_differ_in_size_and_have_the_most_channels(shapes, shape):
    payload, kept, rejected = common_shape(table([("a", "x"), ("a", "y")], shape=shapes), "image")
    assert payload.shape == shape and len(kept) == 2 and rejected == []


def test_from_20_classes_up_the_split_is_by_class():
    keys = table([(f"c{c:02d}", f"{c}-{i}") for c in range(30) for i in range(5)])
    split, rule = assign_splits(keys, OPTIONS)
    by_class = split.reshape(30, 5)
    assert (by_class == by_class[:, :1]).all() and rule.by == "class"
    assert np.bincount(by_class[:, 0]).tolist() == [21, 3, 6]


def test_below_20_classes_each_class_is_split_by_example():
    keys = table([(f"c{c:02d}", f"{c}-{i:02d}") for c in range(4) for i in range(10)])
    split, rule = assign_splits(keys, OPTIONS)
    assert rule.by == "example"
    assert all(np.bincount(of_class).tolist() == [7, 1, 2] for of_class in split.reshape(4, 10))
    other, _ = assign_splits(keys, IngestOptions(source=("digits",), seed=1))
    assert (split != other).any()


@pytest.mark.parametrize("unit", ["sha256", "group"])
def test_copies_and_groups_of_a_class_stay_on_one_side(unit):
    units = [f"{n % 25}".encode() for n in range(100)]
    keys = table([("a", f"{n:03d}") for n in range(100)], **{unit: units})
    split, _ = assign_splits(keys, OPTIONS)
    assert len(set(split.tolist())) == 3
    assert len({(number, of) for number, of in zip(split.tolist(), units, strict=True)}) == 25


def test_copies_label_conflicts_and_groups_are_described():
    keys = table(
        [("a", "0"), ("a", "1"), ("a", "2"), ("b", "3"), ("b", "4"), ("b", "5")],
        sha256=[b"1", b"1", b"2", b"1", b"3", b"3"], group=[b"g", None, b"h", b"g", None, b"h"],
    )  # fmt: skip
    keys, split = describe_split(keys)
    assert (split.rows, split.labels, split.first_rows) == (6, ["a", "b"], [0, 3, 6])
    assert (split.copies, split.label_conflicts) == (3, 1)
    assert keys["content"].to_pylist() == [0, 0, 2, 0, 4, 4]
    assert keys["group_code"].to_pylist() == [0, -1, 1, 0, -1, 1]


def test_an_empty_split_has_no_classes():
    _, split = describe_split(KEYS.empty_table())
    assert (split.rows, split.labels, split.first_rows, split.copies, split.label_conflicts) == (0, [], [0], 0, 0)


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [(4, 1000, [4, 4, 2]), (100, 30, [3, 3, 3, 1]), (100, 5, [1] * 10), (100, 1000, [10])],
)
def test_shards_are_cut_by_rows_and_bytes(rows, size, expected):
    keys = table([("a", f"{n}") for n in range(10)], length=[10] * 10)
    shards = cut_shards(keys, rows, size)
    assert [len(shard) for shard in shards] == expected and pairs(pa.concat_tables(shards)) == pairs(keys)
    assert cut_shards(KEYS.empty_table(), rows, size) == []


# ---- Held out by the source. ----


def test_what_a_source_holds_out_stays_and_the_rest_is_drawn():
    rows = [(f"c{c}", f"{c}-{i:02d}") for c in range(4) for i in range(10)]
    told = ["eval" if id.endswith("0") else None for _, id in rows]
    split, rule = assign_splits(table(rows, split=told), OPTIONS)
    assert [SPLITS[code] for code in split[::10]] == ["eval"] * 4 and rule.by == "example"
    assert np.bincount(split).tolist() == [32, 4, 4]  # a tenth of the other nine of each class


def test_classes_that_are_held_out_whole_make_validation_whole_classes_too():
    rows = [(f"c{c:02d}", f"{c}-{i}") for c in range(12) for i in range(5)]
    told = ["eval" if label in ("c00", "c01") else "train" for label, _ in rows]
    split, rule = assign_splits(table(rows, split=told), OPTIONS)
    by_class = split.reshape(12, 5)
    assert rule.by == "class" and (by_class == by_class[:, :1]).all()
    assert np.bincount(by_class[:, 0]).tolist() == [9, 1, 2]


def test_how_to_split_can_be_said():
    keys = table([(f"c{c:02d}", f"{c}-{i:02d}") for c in range(30) for i in range(10)])
    split, rule = assign_splits(keys, IngestOptions(source=("digits",), split_by="example"))
    assert rule.by == "example"
    assert all(np.bincount(of_class).tolist() == [7, 1, 2] for of_class in split.reshape(30, 10))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(-1, 4)), min_size=1, max_size=60))
def test_what_copies_and_groups_join_is_never_divided(drawn):
    """By loops: rows of one content or one group, directly or through others, are in one split."""
    drawn.sort()
    rows = [(f"c{label}", f"{n:03d}") for n, (label, _, _) in enumerate(drawn)]
    contents = [bytes([content]) * 32 for _, content, _ in drawn]
    groups = [None if group < 0 else bytes([group]) for _, _, group in drawn]
    keys = table(rows, sha256=contents, group=groups)
    split, _ = assign_splits(keys, IngestOptions(source=("digits",), validation_share=0.3, eval_share=0.3))
    for one in range(len(rows)):
        for other in range(one):
            if contents[one] == contents[other] or (groups[one] is not None and groups[one] == groups[other]):
                assert split[one] == split[other]
    assert count_leaks(keys, split) == {"validation": 0, "eval": 0}


def test_leaks_of_a_given_split_are_counted():
    rows = [("a", "0"), ("a", "1"), ("b", "2"), ("b", "3"), ("b", "4")]
    told = ["train", "eval", "train", "eval", "validation"]
    keys = table(rows, split=told, sha256=[b"x" * 32, b"x" * 32, b"y" * 32, b"z" * 32, b"w" * 32],
                 group=[None, None, b"g", b"g", None])  # fmt: skip
    split, _ = assign_splits(keys, OPTIONS)
    assert count_leaks(keys, split) == {"validation": 0, "eval": 2}


def test_given_negatives_stay_with_their_pair():
    rows = [  # by label and id, as the train split has them; of the third pair the anchor is elsewhere
        ("a", "t/1/anchor-0"), ("a", "t/1/positive-0"), ("a", "t/1/positive-2"), ("a", "t/2/negative-0"),
        ("b", "t/1/negative-1"), ("b", "t/10/negative-0"), ("b", "t/2/anchor-0"), ("b", "t/2/positive-0"),
        ("b", "t/4"), ("c", "t/1/negative-0"), ("c", "t/2/negative-1"), ("c", "t/3/negative-0"),
        ("c", "t/3/positive-0"),
    ]  # fmt: skip
    keys = table(rows, side=sides([id for _, id in rows]))
    assert given_triplets(keys).tolist() == [
        [0, 1, 4], [0, 1, 9], [0, 2, 4], [0, 2, 9], [6, 7, 3], [6, 7, 10]
    ]  # fmt: skip


def test_a_negative_of_the_anchors_own_label_is_no_negative():
    rows = [("a", "1/anchor-0"), ("a", "1/negative-0"), ("a", "1/positive-0"), ("b", "1/negative-1")]
    assert given_triplets(table(rows, side=sides([id for _, id in rows]))).tolist() == [[0, 2, 3]]


def test_ids_that_look_like_a_pairs_make_none():
    rows = [("a", "1/anchor-0"), ("a", "1/positive-0"), ("b", "1/negative-1")]
    assert given_triplets(table(rows)).shape == given_triplets(KEYS.empty_table()).shape == (0, 3)
