"""Order, shape, splits, copies and shards of keys, without Beam."""

import contextlib
import hashlib
import tempfile
from pathlib import Path

import keys_oracle
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import keys
from pipeline.corpus.keys import KEYS, SHARD_KEYS, assign_splits, count_leaks, cut_shards, given_triplets, order_rows
from pipeline.corpus.manifest import SPLITS
from pipeline.corpus.options import IngestOptions
from pipeline.corpus.sources import duck
from pipeline.corpus.staging import write_table

OPTIONS = IngestOptions(source=("digits",))
ALL_TRAIN = IngestOptions(source=("digits",), split_by="class", validation_share=0.0, eval_share=0.0)


def table(rows, **columns):
    """Keys of (label, id) pairs; other columns as they are given."""
    defaults = {"sha256": [hashlib.sha256(id.encode()).digest() for _, id in rows], "shape": [[3]] * len(rows)}
    numbers = {name: list(range(len(rows))) for name in ("part", "offset", "length")}
    names = {"label": [label.encode() for label, _ in rows], "id": [id.encode() for _, id in rows]}
    none = {name: [None] * len(rows) for name in KEYS.names}
    return pa.Table.from_pydict(none | names | defaults | numbers | columns, schema=KEYS)


@contextlib.contextmanager
def ordered(staged, kind="vector", options=None):
    """The database of staged keys, in as many files as there are parts; its payload. options: to make splits by."""
    with tempfile.TemporaryDirectory() as directory, duck.connect() as db:
        files = [Path(directory, f"[{number}].parquet") for number in range(2)]
        for file, part in zip(files, (staged.slice(len(staged) // 2), staged.slice(0, len(staged) // 2)), strict=True):
            write_table(file, part)
        payload = order_rows(db, files, kind)
        if options:
            assign_splits(db, options)
        yield db, payload


def pairs(db):
    """(label, id) of the kept rows, in order."""
    rows = db.sql("SELECT label, id FROM keys JOIN classes USING (class) ORDER BY keys.rowid").fetchall()
    return [(label.decode(), id.decode()) for label, id in rows]


def told(db):
    return [str(entry) for entry in keys.rejected(db)]


def drawn(staged, options=OPTIONS):
    """The split of each row, int64 [rows], for rows in order; the rule."""
    with ordered(staged) as (db, _):
        rule = assign_splits(db, options)
        return np.array([split for (split,) in db.sql("SELECT split FROM dealt ORDER BY row").fetchall()]), rule


def sides(ids):
    """Of a pair's rows: what stands behind the slash, without its number."""
    return [id.rpartition("/")[2].partition("-")[0] if "/" in id else None for id in ids]


def test_rows_are_ordered_by_label_and_id_as_utf_8_bytes():
    rows = [("b", "1"), ("ä", "0"), ("a", "2"), ("a", "10"), ("B", "3"), ("\U0001f600", "4"), ("\uffff", "5")]
    with ordered(table(rows)) as (db, _):
        assert pairs(db) == sorted(rows, key=lambda row: (row[0].encode(), row[1].encode())) and told(db) == []


def test_of_a_repeated_id_the_first_is_kept():
    staged = table([("a", "x"), ("b", "x"), ("a", "y"), ("c", "x")], part=[1, 0, 0, 1])
    with ordered(staged) as (db, _):
        assert pairs(db) == [("a", "y"), ("b", "x")]
        assert told(db) == ["x: the id was there before; the first is kept"] * 2


def test_what_has_a_reason_is_no_row():
    staged = table([("a", "x"), ("", "later"), ("", "first")], reason=[None, "empty", "gone"], part=[0, 1, 0])
    with ordered(staged) as (db, _):
        assert pairs(db) == [("a", "x")] and told(db) == ["first: gone", "later: empty"]


def test_no_rows_are_none():
    with ordered(KEYS.empty_table(), options=OPTIONS) as (db, payload):
        assert payload is None and pairs(db) == told(db) == []
        assert keys.facts(db)["rejected"] == 0 and given_triplets(db).shape == (0, 3)
        for name in SPLITS:
            assert keys.count_rows(db, name) == {"rows": 0, "copies": 0, "label_conflicts": 0}
            assert keys.first_rows(db, name).tolist() == [0]
            assert list(keys.labels(db, name)) == list(keys.shards(db, name, 10, 10)) == []


def test_vectors_of_another_length_than_most_are_rejected():
    with ordered(table([("a", "x"), ("a", "y"), ("b", "z")], shape=[[3], [2], [3]])) as (db, payload):
        assert payload.shape == (3,) and pairs(db) == [("a", "x"), ("b", "z")]
        assert told(db) == ["y: vector of 2 numbers, most have 3"]


@pytest.mark.parametrize(
    ("shapes", "shape"),
    [([[4, 5, 1], [4, 5, 3]], (4, 5, 3)), ([[4, 5, 1], [5, 4, 1]], (None, None, 1))],
)
def test_images_may_differ_in_size_and_have_the_most_channels(shapes, shape):
    with ordered(table([("a", "x"), ("a", "y")], shape=shapes), "image") as (db, payload):
        assert payload.shape == shape and len(pairs(db)) == 2 and told(db) == []


def test_labels_that_differ_only_in_form_are_told():
    labels = ["Ärger", "ärger", "0", "0.0", "00", "a b", "AB", "c"]
    with ordered(table([(label, str(n)) for n, label in enumerate(labels)])) as (db, _):
        assert keys.facts(db)["alike"] == [["0", "0.0"], ["AB", "a b"], ["Ärger", "ärger"]]


def test_from_20_classes_up_the_split_is_by_class():
    split, rule = drawn(table([(f"c{c:02d}", f"{c}-{i}") for c in range(30) for i in range(5)]))
    by_class = split.reshape(30, 5)
    assert (by_class == by_class[:, :1]).all() and rule.by == "class"
    assert np.bincount(by_class[:, 0]).tolist() == [21, 3, 6]


def test_below_20_classes_each_class_is_split_by_example():
    staged = table([(f"c{c:02d}", f"{c}-{i:02d}") for c in range(4) for i in range(10)])
    split, rule = drawn(staged)
    assert rule.by == "example"
    assert all(np.bincount(of_class).tolist() == [7, 1, 2] for of_class in split.reshape(4, 10))
    other, _ = drawn(staged, IngestOptions(source=("digits",), seed=1))
    assert (split != other).any()


@pytest.mark.parametrize("unit", ["sha256", "group"])
def test_copies_and_groups_of_a_class_stay_on_one_side(unit):
    units = [f"{n % 25}".encode() for n in range(100)]
    split, _ = drawn(table([("a", f"{n:03d}") for n in range(100)], **{unit: units}))
    assert len(set(split.tolist())) == 3
    assert len({(number, of) for number, of in zip(split.tolist(), units, strict=True)}) == 25


def test_copies_label_conflicts_and_groups_are_described():
    staged = table(
        [("a", "0"), ("a", "1"), ("a", "2"), ("b", "3"), ("b", "4"), ("b", "5")],
        sha256=[b"1", b"1", b"2", b"1", b"3", b"3"], group=[b"g", None, b"h", b"g", None, b"h"],
    )  # fmt: skip
    with ordered(staged, options=ALL_TRAIN) as (db, _):
        assert keys.count_rows(db, "train") == {"rows": 6, "copies": 3, "label_conflicts": 1}
        assert list(keys.labels(db, "train")) == ["a", "b"] and keys.first_rows(db, "train").tolist() == [0, 3, 6]
        [rows] = keys.shards(db, "train", 10, 100)
    assert rows["content"].tolist() == [0, 0, 2, 0, 4, 4] and rows["group"].tolist() == [0, -1, 1, 0, -1, 1]


@pytest.mark.parametrize("batch", [1, 3, 10])
@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [(4, 1000, [4, 4, 2]), (100, 30, [3, 3, 3, 1]), (100, 5, [1] * 10), (100, 1000, [10])],
)
def test_shards_are_cut_by_rows_and_bytes(rows, size, expected, batch):
    every = np.zeros(10, SHARD_KEYS)
    every["length"], every["part"] = 10, np.arange(10)
    shards = list(cut_shards((every[n : n + batch] for n in range(0, 10, batch)), rows, size))
    assert [len(shard) for shard in shards] == expected and (np.concatenate(shards) == every).all()
    assert list(cut_shards([], rows, size)) == []


# ---- Held out by the source. ----


def test_what_a_source_holds_out_stays_and_the_rest_is_drawn():
    rows = [(f"c{c}", f"{c}-{i:02d}") for c in range(4) for i in range(10)]
    held_out = ["eval" if id.endswith("0") else None for _, id in rows]
    split, rule = drawn(table(rows, split=held_out))
    assert [SPLITS[code] for code in split[::10]] == ["eval"] * 4 and rule.by == "example"
    assert np.bincount(split).tolist() == [32, 4, 4]  # a tenth of the other nine of each class


def test_classes_that_are_held_out_whole_make_validation_whole_classes_too():
    rows = [(f"c{c:02d}", f"{c}-{i}") for c in range(12) for i in range(5)]
    held_out = ["eval" if label in ("c00", "c01") else "train" for label, _ in rows]
    split, rule = drawn(table(rows, split=held_out))
    by_class = split.reshape(12, 5)
    assert rule.by == "class" and (by_class == by_class[:, :1]).all()
    assert np.bincount(by_class[:, 0]).tolist() == [9, 1, 2]


def test_how_to_split_can_be_said():
    staged = table([(f"c{c:02d}", f"{c}-{i:02d}") for c in range(30) for i in range(10)])
    split, rule = drawn(staged, IngestOptions(source=("digits",), split_by="example"))
    assert rule.by == "example"
    assert all(np.bincount(of_class).tolist() == [7, 1, 2] for of_class in split.reshape(30, 10))


def test_leaks_of_a_given_split_are_counted():
    rows = [("a", "0"), ("a", "1"), ("b", "2"), ("b", "3"), ("b", "4")]
    held_out = ["train", "eval", "train", "eval", "validation"]
    staged = table(rows, split=held_out, sha256=[b"x" * 32, b"x" * 32, b"y" * 32, b"z" * 32, b"w" * 32],
                   group=[None, None, b"g", b"g", None])  # fmt: skip
    with ordered(staged, options=OPTIONS) as (db, _):
        assert count_leaks(db) == {"validation": 0, "eval": 2}


def test_given_negatives_stay_with_their_pair():
    rows = [  # by label and id, as the train split has them; of the third pair the anchor is elsewhere
        ("a", "t/1/anchor-0"), ("a", "t/1/positive-0"), ("a", "t/1/positive-2"), ("a", "t/2/negative-0"),
        ("b", "t/1/negative-1"), ("b", "t/10/negative-0"), ("b", "t/2/anchor-0"), ("b", "t/2/positive-0"),
        ("b", "t/4"), ("c", "t/1/negative-0"), ("c", "t/2/negative-1"), ("c", "t/3/negative-0"),
        ("c", "t/3/positive-0"),
    ]  # fmt: skip
    with ordered(table(rows, side=sides([id for _, id in rows])), options=ALL_TRAIN) as (db, _):
        assert given_triplets(db).tolist() == [[0, 1, 4], [0, 1, 9], [0, 2, 4], [0, 2, 9], [6, 7, 3], [6, 7, 10]]
        assert keys.facts(db)["given_negatives"] == 6


def test_a_negative_of_the_anchors_own_label_is_no_negative():
    rows = [("a", "1/anchor-0"), ("a", "1/negative-0"), ("a", "1/positive-0"), ("b", "1/negative-1")]
    with ordered(table(rows, side=sides([id for _, id in rows])), options=ALL_TRAIN) as (db, _):
        assert given_triplets(db).tolist() == [[0, 2, 3]]


def test_ids_that_look_like_a_pairs_make_none():
    with ordered(table([("a", "1/anchor-0"), ("a", "1/positive-0"), ("b", "1/negative-1")]), options=ALL_TRAIN) as made:
        assert given_triplets(made[0]).shape == (0, 3)


# ---- All of it, against loops. ----

EXAMPLE = st.fixed_dictionaries({
    "label": st.sampled_from([b"a", b"A", "ä".encode(), b"b", b"c d"]),
    "id": st.sampled_from([b"%d/%b-%d" % (n, side, n % 2) for n in range(9) for side in (b"anchor", b"positive")]),
    "sha256": st.integers(0, 12).map(lambda n: bytes([n]) * 32),
    "group": st.sampled_from([None, None, b"g", b"h", b"i", b"j"]),
    "split": st.sampled_from([None, None, None, "train", "validation", "eval"]),
    "role": st.none(), "shape": st.sampled_from([[3], [3], [2]]), "length": st.integers(1, 9),
    "bits": st.sampled_from([None, 0, 12]), "side": st.sampled_from([None, "anchor", "positive", "negative"]),
    "reason": st.sampled_from([None, None, None, None, "it is empty"]),
})  # fmt: skip
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.3])


@given(
    drawn=st.lists(EXAMPLE, max_size=40), held=st.booleans(), by=st.sampled_from(["auto", "class", "example"]),
    seed=st.integers(0, 3), validation=SHARES, evaluation=SHARES,
    shard=st.tuples(st.integers(1, 9), st.integers(1, 50)),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_all_of_it_is_what_loops_find(drawn, held, by, seed, validation, evaluation, shard):
    rows = [row | {"part": n % 3, "offset": n, "split": row["split"] if held else None} for n, row in enumerate(drawn)]
    options = IngestOptions(
        source=("digits",), split_by=by, seed=seed, validation_share=validation, eval_share=evaluation
    )
    kept, rejected = keys_oracle.order(rows)
    split, expected_by = keys_oracle.split(kept, options)
    parts = {name: [row for row, of in zip(kept, split, strict=True) if of == n] for n, name in enumerate(SPLITS)}
    with ordered(pa.Table.from_pylist(rows, schema=KEYS)) as (db, payload):
        rule = assign_splits(db, options)
        assert [(entry.source.encode(), entry.reason) for entry in keys.rejected(db)] == rejected
        assert rule.by == expected_by and (payload is None) == (not kept)
        for name, part in parts.items():
            expected, found = keys_oracle.describe(part), keys.count_rows(db, name)
            shards = list(keys.shards(db, name, *shard))
            assert [len(rows) for rows in shards] == keys_oracle.cut([row["length"] for row in part], *shard)
            assert [row.item() for rows in shards for row in rows] == expected["index"]
            assert list(keys.labels(db, name)) == expected["labels"]
            assert keys.first_rows(db, name).tolist() == expected["first_rows"]
            assert found == {"rows": len(part)} | {name: expected[name] for name in ("copies", "label_conflicts")}
        assert count_leaks(db) == {name: keys_oracle.leaks(parts["train"], parts[name]) for name in SPLITS[1:]}
        assert list(map(tuple, given_triplets(db).tolist())) == keys_oracle.triplets(parts["train"])
