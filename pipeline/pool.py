"""The rows that take part in a round, and their embeddings on disk: what mining scans and the trainer may look at."""

import functools
from pathlib import Path

import numpy as np

from pipeline import records, selection
from pipeline.records import Corpus, Split
from pipeline.selection import Block


class Pool:
    """The rows that take part in a round: those of the train split, or of the classes drawn for it."""

    def __init__(self, run_dir: Path, round: int, checkpoint_digest: str, class_pool: int | None, seed: int):
        self.corpus: Corpus = records.open_corpus(run_dir)
        self.split: Split = self.corpus.split("train")
        sizes = np.diff(self.split.first_rows)
        self.classes = np.arange(len(sizes))
        if class_pool is not None and class_pool < len(sizes):
            key = selection.draw_key(seed, round, "class-pool")
            self.classes = np.sort(np.argsort(selection.row_hashes(key, self.classes), kind="stable")[:class_pool])
        self._first = np.concatenate([[0], np.cumsum(sizes[self.classes])]).astype(np.int64)
        self.directory = records.embeddings_dir(
            run_dir, round, self.corpus.fingerprint, checkpoint_digest, class_pool, seed
        )

    @property
    def rows(self) -> int:
        return int(self._first[-1])

    @functools.cached_property
    def dim(self) -> int:
        """Of the embeddings."""
        return int(records.open_array(self.embedding_path(0)).shape[1])

    def class_runs(self, rows: int) -> np.ndarray:
        """int64 [runs + 1]: cuts the pool into runs of whole classes, of about so many rows each, by position."""
        cuts = np.searchsorted(self._first, np.arange(0, self.rows, rows))
        return np.unique(np.append(self._first[cuts], self.rows))

    def position(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: a row's place among the pool's rows; for a row outside, that of the next inside."""
        if self.rows == self.split.rows:
            return rows
        place = np.searchsorted(self.classes, self.split.class_of(rows))
        inside = (place < len(self.classes)) & (
            self.classes[np.minimum(place, len(self.classes) - 1)] == self.split.class_of(rows)
        )
        first = self.split.first_rows[self.classes[np.minimum(place, len(self.classes) - 1)]]
        return np.where(inside, self._first[place] + rows - first, self._first[place])

    def row(self, positions: np.ndarray) -> np.ndarray:
        """int64 [n]: the rows at these places; the inverse of `position`."""
        if self.rows == self.split.rows:
            return positions
        place = np.searchsorted(self._first, positions, "right") - 1
        return self.split.first_rows[self.classes[place]] + positions - self._first[place]

    @functools.cached_property
    def shard_positions(self) -> np.ndarray:
        """int64 [shards + 1]: where each corpus shard's rows begin among the pool's."""
        ends = self.position(np.minimum(self.split.shard_rows, self.split.rows - 1))
        ends[self.split.shard_rows >= self.split.rows] = self.rows
        return ends

    def shard_rows(self, number: int) -> np.ndarray:
        """int64 [n]: the pool's rows in a corpus shard."""
        return self.row(np.arange(self.shard_positions[number], self.shard_positions[number + 1]))

    def embedding_path(self, number: int) -> Path:
        return self.directory / self.split.shards[number]["file"].replace(".tfrecord", ".npy")

    def checksum_path(self, number: int) -> Path:
        return self.embedding_path(number).with_suffix(".sha256")

    def is_embedded(self, number: int) -> bool:
        """Whether a corpus shard's embeddings are there and whole. Their checksum is written last."""
        path, checksum = self.embedding_path(number), self.checksum_path(number)
        return path.exists() and checksum.exists() and checksum.read_text() == records.sha256_of_file(path)

    def embeddings(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, dim] of rows of the pool, read by position."""
        positions = self.position(rows)
        order = np.argsort(positions, kind="stable")
        cuts = np.searchsorted(positions[order], self.shard_positions)
        out: np.ndarray | None = None
        for number in np.flatnonzero(np.diff(cuts)):
            where = order[cuts[number] : cuts[number + 1]]
            stored = records.open_array(self.embedding_path(int(number)))
            if out is None:
                out = np.empty((len(rows), stored.shape[1]), np.float32)
            out[where] = stored[positions[where] - self.shard_positions[number]]
        assert out is not None, "no rows asked for"
        return out

    def block(self, rows: np.ndarray) -> Block:
        """Rows with everything that selection wants to know of them."""
        return Block(
            row=rows,
            embedding=self.embeddings(rows),
            content=self.split.codes("content", rows) if self.split.copies else None,
            group=self.split.codes("group", rows) if self.split.grouped else None,
        )
