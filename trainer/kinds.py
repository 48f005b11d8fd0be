"""Which rows of a corpus are each other's positives and negatives, in a graph; as in mining."""

from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.corpus.corpus import Split


class Kinds:
    """Copies and rows of one group are not each other's negatives, and copies no positives.

    Args:
      first_rows: int64 [classes + 1], class c has rows first_rows[c] to first_rows[c + 1] - 1.
      content, group: int64 [rows], codes; None where no row is a copy, or has a group. A group of -1 is none.
    """

    def __init__(self, first_rows: np.ndarray, content: np.ndarray | None = None, group: np.ndarray | None = None):
        codes = {"first_rows": first_rows, "content": content, "group": group}
        self._codes = {name: tf.Variable(of, trainable=False) for name, of in codes.items() if of is not None}

    @classmethod
    def of(cls, split: Split) -> "Kinds":
        rows = np.arange(split.rows)
        return cls(
            split.first_rows,
            split.codes("content", rows) if split.copies else None,
            split.codes("group", rows) if split.grouped else None,
        )

    def __call__(self, one: Any, other: Any) -> tuple[Any, Any]:
        """Which rows of `other` are positives, and which negatives, of each of `one`: bool [n of one, n of other]."""

        def same(code: Any) -> Any:
            return code(one)[:, None] == code(other)[None, :]

        def of(name: str) -> Any:
            return lambda row: tf.gather(self._codes[name], row)

        same_label = same(lambda row: class_of(self._codes["first_rows"].value(), row))
        copy = same(of("content")) if "content" in self._codes else same(lambda row: row)
        negative = ~(same_label | copy)
        if "group" in self._codes:
            negative &= ~(same(of("group")) & (of("group")(one) >= 0)[:, None])
        return same_label & ~copy, negative


def class_of(first_rows: Any, row: Any) -> Any:
    return tf.searchsorted(first_rows, row, "right", tf.int64) - 1
