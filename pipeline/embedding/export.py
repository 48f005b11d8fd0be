"""Embeddings with their ids and labels, as one file for others: of whole splits, or of a source's rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import SPLITS, Feature
from pipeline.corpus.options import MAX_TEXT
from pipeline.corpus.sources import open_source
from pipeline.corpus.sources.encoding import as_8_bits
from pipeline.corpus.sources.source import Example, Rejected, bounded
from pipeline.embedding.embedder import CHUNK_ROWS, Embedder
from pipeline.embedding.network import load_network
from pipeline.errors import InputError
from pipeline.files import manifests, storage, tfrecords
from pipeline.files.layout import Run
from pipeline.process.progress import Stage, live

Chunk = tuple[np.ndarray, dict[str, list[Any]]]  # float32 [n, dim]; id, label and split of each, None for none
CHUNK_BYTES = 64 << 20  # of a source's rows that are in memory at a time, if they are not as many as CHUNK_ROWS
COLUMNS = ("id", "label", "split")
REASONS = ".rejected.jsonl"  # after the name of what is written


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """splits: of a corpus. source, rejected: of one that is none, how many of its rows are left out."""

    rows: int
    dim: int
    splits: list[str]
    checkpoint: str
    out: str
    source: str | None = None
    rejected: int = 0

    def __str__(self) -> str:
        of = self.source or " + ".join(self.splits)
        lines = [f"{self.rows:,} embeddings of {self.dim} numbers, {of}, with {self.checkpoint}", f"  {self.out}"]
        if self.source:
            why = f", with reasons in {self.out}{REASONS}" if self.rejected else ""
            read = f"{self.rows + self.rejected:,} rows read: {self.rows:,} embedded, {self.rejected:,} rejected{why}"
            lines.append(f"  {read}")
        return "\n".join(lines)


def checkpoint_of(run_dir: Path, number: int | str | None = None) -> Path:
    """A round's checkpoint, the `best`, or the newest."""
    run = Run(run_dir)
    if isinstance(number, str):
        if not run.best_checkpoint.exists():
            raise InputError(f"{run.best_checkpoint} is missing: pipeline.rounds keeps it. Name a round's number.")
        return run.best_checkpoint
    round = run.newest_checkpoint() if number is None else run.round(number)
    return (round or run.round(0)).checkpoint


def export(run_dir: Path, out: Path, split: str | None = None, number: int | str | None = None) -> Embedded:
    """Writes the embeddings of a split, or of all, with the checkpoint that `checkpoint_of` gives."""
    write, corpus, checkpoint = _writer(out), Corpus.open(run_dir), checkpoint_of(run_dir, number)
    embedder = Embedder(load_network(checkpoint), corpus.feature)
    splits, done = [split] if split else list(SPLITS), 0

    def counted() -> Iterator[Chunk]:
        nonlocal done
        for chunk in _chunks(embedder, corpus, splits):
            yield chunk
            done += len(chunk[0])

    rows = sum(corpus.split(name).rows for name in splits)
    with live(Stage(name="embed", unit="rows", total=rows, done=lambda: done)):
        storage.write_atomically(out, lambda path: write(path, embedder.dim, counted()))
    return Embedded(rows=rows, dim=embedder.dim, splits=splits, checkpoint=str(checkpoint), out=str(out))


def export_source(
    text: str, checkpoint: Path, out: Path, bits: int | None = None, max_text: int = MAX_TEXT
) -> Embedded:
    """Writes the embeddings of a source's rows, in its order. Rows without a label are among them.

    Args:
      text: NAME:ARGUMENT, as ingest takes it.
      bits: of images of 16 bits a pixel, as in the manifest of the corpus that the network is from; without it, they
        are rejected.
    Raises:
      InputError: if the source or the checkpoint cannot be read, they do not fit, or no row is left. A row that cannot
        be embedded is named in a file beside `out`, and counted.
    """
    write, source, network = _writer(out), open_source(text, labelled=False), load_network(checkpoint)
    feature = network.taken(source.kind)
    embedder, parts = Embedder(network, feature), source.parts()
    rows, done, rejected = 0, 0, list[Rejected]()

    def kept() -> Iterator[Example]:
        nonlocal rows, done
        for part in parts:
            for found in _fitting(bounded(source.read(part), max_text), feature, bits):
                if isinstance(found, Rejected):
                    rejected.append(found)
                else:
                    rows += 1
                    yield found
            done += 1

    def chunks() -> Iterator[Chunk]:
        for batch in _batches(kept()):
            columns = {name: [getattr(example, name) for example in batch] for name in COLUMNS}
            payloads = [[x.payload] if isinstance(x.payload, bytes) else x.payload for x in batch]
            records = [tfrecords.make_example({feature.kind: payload}) for payload in payloads]
            yield embedder(records, np.arange(rows - len(batch), rows)), columns
        if not rows:
            raise InputError(f"{text} holds no row to embed" + "".join(f"; {entry}" for entry in rejected[:3]))

    with live(Stage(name="embed", unit="parts", total=len(parts), done=lambda: done)):
        storage.write_atomically(out, lambda path: write(path, embedder.dim, chunks()))
    reasons = out.with_name(out.name + REASONS)
    reasons.unlink(missing_ok=True)
    if rejected:
        manifests.write_json_lines(reasons, rejected)
    return Embedded(
        rows=rows, dim=embedder.dim, splits=[], checkpoint=str(checkpoint), out=str(out), source=text,
        rejected=len(rejected),
    )  # fmt: skip


def _writer(out: Path) -> Callable[[Path, int, Iterator[Chunk]], None]:
    if out.suffix not in WRITERS:
        raise InputError(f"--out {out}: expected a name that ends in {' or '.join(WRITERS)}")
    return WRITERS[out.suffix]


def _fitting(
    examples: Iterable[Example | Rejected], feature: Feature, bits: int | None
) -> Iterator[Example | Rejected]:
    """The same, as the corpus would hold them; what does not fit the network is rejected."""
    for found in examples:
        if isinstance(found, Rejected):
            yield found
        elif feature.kind == "vector" and found.shape != feature.shape:
            yield found.rejected(f"vector of {found.shape[0]} numbers, the network takes {feature.shape[0]}")
        elif found.bits and bits:
            yield msgspec.structs.replace(found, payload=as_8_bits(bytes(found.payload), bits))
        elif found.bits:
            yield found.rejected("16 bits a pixel, and no corpus with such images says which is white. Save it with 8")
        else:
            yield found


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    batch, size = list[Example](), 0
    for example in examples:
        batch.append(example)
        size += len(example.payload)
        if len(batch) == CHUNK_ROWS or size > CHUNK_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


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
    texts: dict[str, Any] = {
        f"{name}s": np.array([text or "" for _, others in parts for text in others[name]], str) for name in COLUMNS
    }
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
