"""A queue of past rows against a plain list."""

import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from trainer.past import PastRows


@given(st.integers(3, 9), st.lists(st.integers(1, 3), max_size=9))
def test_the_newest_rows_are_there_and_the_rest_is_empty(rows, sizes):
    past, pushed = PastRows(rows, 2), []
    for size in sizes:
        labels = range(len(pushed), len(pushed) + size)
        past.push(tf.constant([[float(label), 1.0] for label in labels]), tf.constant(labels, tf.int64))
        pushed += labels
    labels = past.label.numpy().tolist()
    assert sorted(label for label in labels if label >= 0) == pushed[-rows:]
    assert labels.count(-1) == max(0, rows - len(pushed))
    assert past.embedding.numpy().tolist() == [[0, 0] if label < 0 else [label, 1] for label in labels]
