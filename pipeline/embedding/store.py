"""The embeddings of a round on disk, and rows with all that selection wants to know of them."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.corpus.corpus import Corpus, Split
from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.layout import Round
from pipeline.files.manifests import sha256_of_json
from pipeline.triplets.rows import Block

MEAN_ROWS = 1024
SHARDS_LOOKED_AT = 4096
ROWS = "rows.npz"  # which rows are embedded, if not all are
FILE_BYTES = 64 << 20  # of payload of such rows whose embeddings share a file
FILE_ROWS = 2048  # at most
GIVEN = "given"  # in place of a kind of machine: embeddings that a user brought


def mean_norm(rows: int, embed: Callable[[np.ndarray], np.ndarray]) -> float:
    """The length of the mean embedding: 1 where all lie together, 0 where they are spread out. Of 1,024 of the rows.

    embed: row numbers to float32 [n, dim].
    """
    looked_at = np.unique(np.linspace(0, rows - 1, MEAN_ROWS).astype(np.int64))
    return float(np.linalg.norm(embed(looked_at).mean(axis=0)))


class EmbeddingStore:
    """Embeddings of the train split or of a part of it, a file a corpus shard; the note beside it is written last: its
    checksum, and the kind of machine that it is from.

    The folder is named by the content of corpus and checkpoint, so that what it holds is never stale. `whole` is the
    train split; rows are numbered as in `split`.
    """

    def __init__(self, round: Round, corpus: Corpus, checkpoint_digest: str, part: str = ""):
        """part: names the rows that are embedded, `keep_to` says which; nothing for all."""
        self.whole, self.part = corpus.split("train"), part
        shaped_by = [corpus.fingerprint, checkpoint_digest, *filter(None, [part])]
        self.directory = round.embeddings(sha256_of_json(shaped_by)[:16])

    @functools.cached_property
    def split(self) -> Split:
        """The rows that are embedded.

        Raises:
          InputError: if these are a part, and somebody removed the file that says which.
        """
        path = self.directory / ROWS
        if not self.part:
            return self.whole
        if not path.exists():
            raise InputError(f"{path} is missing: it says which rows were embedded. Mine the round again.")
        return self.whole.part(**storage.read_arrays(path))

    def keep_to(self, rows: np.ndarray) -> None:
        """Only these are to be embedded. rows: int64 [n] of the corpus, ascending."""
        sizes = np.maximum(self.whole.codes("length", rows), FILE_BYTES // FILE_ROWS)
        starts = np.flatnonzero(np.diff((np.cumsum(sizes) - sizes) // FILE_BYTES, prepend=-1))
        cuts = np.append(starts, len(rows))
        storage.write_checked(self.directory / ROWS, lambda part: np.savez(part, numbers=rows, shard_rows=cuts))

    @property
    def files(self) -> int:
        """How many files of embeddings there are, when all are."""
        return len(self.split.shard_rows) - 1

    def removed(self) -> bool:
        """Whether somebody removed any of them, or made it unclear which rows they are of."""
        rows = self.directory / ROWS
        known = not self.part or (rows.exists() and storage.is_as_written(rows))
        return not known or not all(self.path(shard).exists() for shard in range(self.files))

    def path(self, shard: int) -> Path:
        name = f"{shard:06d}.npy" if self.part else self.split.shards[shard].file.replace(".tfrecord", ".npy")
        return self.directory / name

    def made_on(self, shard: int) -> str | None:
        """The kind of machine that a corpus shard's embeddings are from; None if they are not there or not whole."""
        path = self.path(shard)
        if not path.exists() or not storage.is_as_written(path):
            return None
        stored, rows = storage.open_array(path), np.diff(self.split.shard_rows[shard : shard + 2])
        whole = stored.dtype == np.float32 and stored.ndim == 2 and len(stored) == rows
        return storage.note_of(path) if whole else None

    def has(self, shard: int) -> bool:
        return self.made_on(shard) is not None

    def machines(self) -> list[str]:
        """All kinds of machine that the embeddings are from; of very many shards, of 4,096."""
        shards = np.unique(np.linspace(0, self.files - 1, SHARDS_LOOKED_AT).astype(np.int64))
        return sorted({storage.note_of(self.path(shard)) for shard in shards.tolist()})

    def write(self, shard: int, embeddings: np.ndarray, kind: str) -> None:
        """embeddings: float32 [rows of the shard, dim], on the grid. kind: of machine, or GIVEN."""
        storage.write_checked(self.path(shard), lambda temporary: np.save(temporary, embeddings), kind)

    @functools.cached_property
    def dim(self) -> int:
        return int(storage.open_array(self.path(0)).shape[1])

    def embeddings(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, dim] of rows, read by position."""
        out = None  # other shards may not be embedded yet
        for number, where, places in self.split.by_shard(rows):
            stored = storage.open_array(self.path(number))
            out = np.empty((len(rows), stored.shape[1]), np.float32) if out is None else out
            out[where] = stored[places]
        return np.empty((0, self.dim), np.float32) if out is None else out

    def mean_norm(self) -> float:
        return mean_norm(self.split.rows, self.embeddings)

    def block(self, rows: np.ndarray) -> Block:
        return Block(
            row=rows,
            embedding=self.embeddings(rows),
            content=self.split.codes("content", rows) if self.split.copies else None,
            group=self.split.codes("group", rows) if self.split.grouped else None,
        )
