"""What a pack carries of its rows: id, label, group and payload, read from the corpus by position."""

from typing import Any

import numpy as np

from pipeline.corpus.corpus import Split

CACHE_BYTES = 256 << 20  # of records kept between packs: a row is in several packs


class Payload:
    """The parsed Examples of a split's rows, kept while they fit in cache_bytes."""

    def __init__(self, split: Split, cache_bytes: int = CACHE_BYTES):
        self.split, self.cache_bytes = split, cache_bytes
        self._kept: dict[int, dict[str, Any]] = {}
        self._bytes = 0

    def load(self, rows: np.ndarray) -> None:
        """Reads those of these rows that are not kept, in order of position. rows: int64, different."""
        missing = np.array([row for row in rows.tolist() if row not in self._kept], np.int64)
        size = int(self.split.codes("length", missing).sum())
        if self._bytes + size > self.cache_bytes:
            self._kept.clear()
            self._bytes, missing, size = 0, rows, int(self.split.codes("length", rows).sum())
        self._bytes += size
        self._kept |= zip(missing.tolist(), self.split.examples(missing), strict=True)

    def of(self, rows: np.ndarray) -> dict[str, list[bytes] | np.ndarray]:
        """The features of loaded rows, one after the other: lists of bytes, or float32 of vectors."""
        examples = [self._kept[row] for row in rows.tolist()]
        columns: dict[str, list[bytes] | np.ndarray] = {}
        for name in examples[0].keys() | ({"group"} if self.split.grouped else set()):
            values = [example.get(name, [b""]) for example in examples]
            columns[name] = np.concatenate(values) if isinstance(values[0], np.ndarray) else [v for [v] in values]
        return columns
