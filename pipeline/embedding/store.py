"""The embeddings of a round on disk, and rows with all that selection wants to know of them."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.corpus.corpus import Corpus, Split
from pipeline.files import storage
from pipeline.files.layout import Round
from pipeline.files.manifests import sha256_of_json
from pipeline.triplets.rows import Block

MEAN_ROWS = 1024
SHARDS_LOOKED_AT = 4096
ROWS = "rows.npz"  # which rows are embedded, if not all are
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
        self.whole = corpus.split("train")
        shaped_by = [corpus.fingerprint, checkpoint_digest, *filter(None, [part])]
        self.directory = round.embeddings(sha256_of_json(shaped_by)[:16])

    @functools.cached_property
    def split(self) -> Split:
        """The rows that are embedded."""
        path = self.directory / ROWS
        return self.whole.part(storage.read_arrays(path)["numbers"]) if path.exists() else self.whole

    def keep_to(self, rows: np.ndarray) -> None:
        """Only these are to be embedded. rows: int64 [n] of the corpus, ascending."""
        storage.save_arrays(self.directory / ROWS, numbers=rows)

    def path(self, shard: int) -> Path:
        return self.directory / self.split.shards[shard].file.replace(".tfrecord", ".npy")

    def made_on(self, shard: int) -> str | None:
        """The kind of machine that a corpus shard's embeddings are from; None if they are not there or not whole."""
        path = self.path(shard)
        if not path.exists() or not storage.is_as_written(path):
            return None
        stored = storage.open_array(path)
        whole = stored.dtype == np.float32 and stored.ndim == 2 and len(stored) == self.split.shards[shard].records
        return storage.note_of(path) if whole else None

    def has(self, shard: int) -> bool:
        return self.made_on(shard) is not None

    def machines(self) -> list[str]:
        """All kinds of machine that the embeddings are from; of very many shards, of 4,096."""
        shards = np.unique(np.linspace(0, len(self.split.shards) - 1, SHARDS_LOOKED_AT).astype(np.int64))
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
