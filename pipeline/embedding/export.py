"""Embeddings of whole splits with their ids and labels, as one file for others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import SPLITS
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import load_network
from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.layout import Run
from pipeline.process.progress import Stage, live

Chunk = tuple[np.ndarray, dict[str, list[str]]]  # float32 [n, dim]; id, label and split of each
COLUMNS = ("id", "label", "split")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    rows: int
    dim: int
    splits: list[str]
    checkpoint: str
    out: str

    def __str__(self) -> str:
        what = f"{self.rows:,} embeddings of {self.dim} numbers, {' + '.join(self.splits)}"
        return f"{what}, with {self.checkpoint}\n  {self.out}"


def export(run_dir: Path, out: Path, split: str | None = None, number: int | str | None = None) -> Embedded:
    """Writes the embeddings of a split, or of all, with a round's checkpoint, with the `best`, or with the newest."""
    if out.suffix not in WRITERS:
        raise InputError(f"--out {out}: expected a name that ends in {' or '.join(WRITERS)}")
    corpus, run = Corpus.open(run_dir), Run(run_dir)
    if isinstance(number, str):
        checkpoint = run.best_checkpoint
        if not checkpoint.exists():
            raise InputError(f"{checkpoint} is missing: pipeline.rounds keeps it. Name a round's number.")
    else:
        round = run.newest_checkpoint() if number is None else run.round(number)
        checkpoint = (round or run.round(0)).checkpoint
    embedder = Embedder(load_network(checkpoint), corpus.feature)
    splits, done = [split] if split else list(SPLITS), 0

    def counted() -> Iterator[Chunk]:
        nonlocal done
        for chunk in _chunks(embedder, corpus, splits):
            yield chunk
            done += len(chunk[0])

    rows = sum(corpus.split(name).rows for name in splits)
    with live(Stage(name="embed", unit="rows", total=rows, done=lambda: done)):
        storage.write_atomically(out, lambda path: WRITERS[out.suffix](path, embedder.dim, counted()))
    return Embedded(rows=rows, dim=embedder.dim, splits=splits, checkpoint=str(checkpoint), out=str(out))


def _chunks(embedder: Embedder, corpus: Corpus, splits: Sequence[str]) -> Iterator[Chunk]:
    for name in splits:
        split = corpus.split(name)
        split.check()
        for rows, embeddings in embedder.chunks(split):
            examples = list(split.examples(rows))
            columns = {key: [example[key][0].decode() for example in examples] for key in ("id", "label")}
            yield embeddings, {**columns, "split": [name] * len(rows)}


def write_npz(path: Path, dim: int, chunks: Iterator[Chunk]) -> None:
    """`vectors` float32 [rows, dim], and `ids`, `labels`, `splits`, as NumPy's .npz, which `arrays:` reads.

    All is in memory at once.
    """
    parts = list(chunks)
    texts: Any = {f"{name}s": np.array([text for _, others in parts for text in others[name]], str) for name in COLUMNS}
    vectors = np.concatenate([np.empty((0, dim), np.float32), *(vectors for vectors, _ in parts)])
    np.savez(path, vectors=vectors, **texts)


def write_parquet(path: Path, dim: int, chunks: Iterator[Chunk]) -> None:
    """Columns id, label, split and embedding, a list of `dim` float32, as Parquet."""
    schema = pa.schema([*((name, pa.string()) for name in COLUMNS), ("embedding", pa.list_(pa.float32(), dim))])
    with pq.ParquetWriter(path, schema) as writer:
        for embeddings, others in chunks:
            column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), dim)
            writer.write_table(pa.table([*(others[name] for name in COLUMNS), column], schema=schema))


WRITERS: dict[str, Callable[[Path, int, Iterator[Chunk]], None]] = {".npz": write_npz, ".parquet": write_parquet}
