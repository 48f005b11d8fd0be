"""Serialising Examples by ourselves: the bytes are protobuf's."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import examples, records
from pipeline.examples import Column, Strings

numbers = st.lists(st.one_of(st.integers(0, 300), st.integers(-(2**63), 2**63 - 1)), max_size=200)
floats = st.lists(st.floats(width=32, allow_nan=False), max_size=50)
strings = st.lists(st.one_of(st.binary(max_size=3), st.integers(120, 20_000).map(bytes)), max_size=5)
# None begins another: of "a" and "ab" protobuf's Python package puts "ab" first.
names = st.lists(st.text(min_size=1, max_size=150), min_size=3, max_size=3).filter(
    lambda some: not any(a.startswith(b) for a, b in itertools.permutations(some, 2))
)


def serialised(columns, path):
    """What `serialise` made, as TensorFlow's reader and ours read it."""
    path.write_bytes(examples.serialise(columns).tobytes())
    found = list(records.read_records(path))
    assert found == [record.numpy() for record in records.import_tensorflow().data.TFRecordDataset(str(path))]
    return found


def starts_of(lists):
    return np.concatenate([[0], np.cumsum(list(map(len, lists)))]).astype(np.int64)


@given(rows=st.lists(st.tuples(numbers, floats, strings), min_size=1, max_size=4), name=names)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_bytes_are_those_of_protobuf(rows, name, tmp_path):
    ints, reals, texts = zip(*rows, strict=True)
    columns = {
        name[0]: Column(values=np.array(sum(ints, []), np.int64), starts=starts_of(ints)),
        name[1]: Column(values=np.array(sum(reals, []), np.float32), starts=starts_of(reals)),
        name[2]: Column(values=Strings(sum(texts, [])), starts=starts_of(texts)),
    }
    Example = records.import_tensorflow().train.Example
    for made, (i, f, s) in zip(serialised(columns, tmp_path / "f"), rows, strict=True):
        expected = Example()
        expected.features.feature[name[0]].int64_list.SetInParent()
        expected.features.feature[name[1]].float_list.SetInParent()
        expected.features.feature[name[2]].bytes_list.SetInParent()
        expected.features.feature[name[0]].int64_list.value.extend(i)
        expected.features.feature[name[1]].float_list.value.extend(f)
        expected.features.feature[name[2]].bytes_list.value.extend(s)
        assert Example.FromString(made) == expected
        assert made == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.float32])
def test_examples_share_values_by_index(dtype, tmp_path):
    table = np.arange(-6, 6).reshape(4, 3).astype(dtype)
    index, starts = np.array([3, 0, 0, 1]), np.array([0, 1, 4])
    columns = {
        "table": Column(values=table, index=index, starts=starts),
        "text": Column(values=Strings([b"a", b"", b"\0", b"d"]), index=index, starts=starts),
        "words": Column(values=Strings([b"%d" % n for n in range(8)], 2), index=index, starts=starts),
    }
    for number, made in enumerate(serialised(columns, tmp_path / "f")):
        here = index[starts[number] : starts[number + 1]]
        found = records.parse_example(made)
        np.testing.assert_array_equal(found["table"], table[here].ravel())
        assert found["text"] == [[b"a", b"", b"\0", b"d"][i] for i in here]
        assert found["words"] == [word for i in here for word in (b"%d" % (2 * i), b"%d" % (2 * i + 1))]


def test_a_record_that_nobody_could_read_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(examples, "LARGEST", 1000)
    column = Column(values=Strings([bytes(400), bytes(600)]), starts=np.array([0, 1, 2]))
    assert len(serialised({"image": column}, tmp_path / "f")) == 2
    with pytest.raises(records.InputError, match="a record of 1,0.. bytes.*lower --pack_rows"):
        examples.serialise({"image": Column(values=column.values, starts=np.array([0, 2]))})


@settings(deadline=None)
@given(parts=st.lists(strings.map(lambda some: some[: len(some) // 2 * 2]), max_size=6))
def test_strings_grow(parts):
    kept = Strings(width=2)
    for part in parts:
        kept.append(part)
    whole = sum(parts, [])
    assert len(kept) == len(whole) // 2
    assert kept.joined.tobytes() == b"".join(whole)
    assert [kept.data[a:b].tobytes() for a, b in itertools.pairwise(kept.bounds[: len(whole) + 1])] == whole
