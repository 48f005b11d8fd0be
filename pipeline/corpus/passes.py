"""What ingest's jobs do: a first pass that stages, the ordering of all keys, a second pass that copies.

The first pass streams the source's parts and stages each part's examples beside their keys; then one worker sorts the
keys alone into rows, splits and shards; the second copies each shard's records by position. No payload goes through a
shuffle, and no row through a graph or through the process that starts it.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import msgspec
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.corpus import keys
from pipeline.corpus.manifest import INDEX, SPLITS, CorpusManifest, CorpusShard, SplitManifest
from pipeline.corpus.options import IngestOptions
from pipeline.corpus.sources import duck
from pipeline.corpus.sources.encoding import as_8_bits
from pipeline.corpus.sources.source import Example, Rejected, Source, bounded, payload_sha256
from pipeline.corpus.staging import Staging, write_table
from pipeline.files import manifests, storage, tfrecords
from pipeline.files.manifests import Shard
from pipeline.process.beam import run
from pipeline.process.progress import Stage, live

SHARD_BYTES = 64 << 20
KEYS_MEMORY = "500MB"  # of what sorts them; with twice that it is not faster
Written = tuple[str, int, CorpusShard]  # split, number, what the manifest says of it
Ordered = tuple[CorpusManifest, dict[str, int]]  # without its shards; how many each split gets


def stage(
    source: Source, staging: Staging, options: IngestOptions, beam_options: PipelineOptions, shard_rows: int
) -> Ordered:
    """Reads a source once, and orders the keys of what it holds."""
    parts = source.parts()
    staging.save_parts(parts)
    write = functools.partial(
        stage_part, kind=source.kind, read=source.read, staging=staging, max_text=options.max_text
    )
    order = functools.partial(
        order_keys, parts=len(parts), kind=source.kind, options=options, staging=staging, shard_rows=shard_rows
    )
    with live(Stage.of_files("read", "parts", len(parts), staging.path, ".parquet")):
        run(
            beam_options,
            lambda pipeline: (
                pipeline
                | "Count parts" >> beam.Create([len(parts)])
                | "List parts" >> beam.FlatMap(lambda count: range(count))
                | "Spread" >> beam.Reshuffle()
                | "Stage" >> beam.Map(write)
                | "Count staged" >> beam.combiners.Count.Globally()
                | "Order keys" >> beam.Map(order)
            ),
        )
    ordered: Ordered = msgspec.json.decode(staging.ordered.read_bytes(), type=Ordered)
    return ordered


def stage_part(
    number: int, kind: str, read: Callable[[Any], Iterator[Example | Rejected]], staging: Staging, max_text: int
) -> int:
    """A part's number -> the same number: writes the part's examples, their keys and what was rejected."""
    kept: list[tuple[Any, ...]] = []  # with a dict a row, the garbage collector took a third of the time
    rejected: list[dict[str, Any]] = []

    def records() -> Iterator[bytes]:
        for example in bounded(read(staging.read_part(number)), max_text):
            if isinstance(example, Rejected):
                where = {"part": number, "offset": len(rejected)}
                rejected.append({"id": example.source.encode(), "reason": example.reason, **where})
                continue
            names = {"id": example.id, "label": example.label, "group": example.group, "role": example.role}
            features: dict[str, Any] = {name: [text.encode()] for name, text in names.items() if text is not None}
            features[kind] = [example.payload] if isinstance(example.payload, bytes) else example.payload
            record = tfrecords.make_example(features)
            kept.append(_key(example, number, len(record)))
            yield record

    tfrecords.write_records(staging.part(number, ".tfrecord"), records())
    tables = [pa.Table.from_pylist(rejected, schema=keys.KEYS)]
    if kept:
        columns: dict[str, Any] = dict(zip(keys.KEYS.names, zip(*kept, strict=True), strict=True))
        columns["offset"] = tfrecords.offsets_of(columns["length"])
        tables.append(pa.table(columns, schema=keys.KEYS))
    write_table(staging.part(number, ".parquet"), pa.concat_tables(tables))
    return number


def _key(example: Example, part: int, length: int) -> tuple[Any, ...]:
    """What KEYS lists, but for the offset."""
    label, group = (name and name.encode() for name in (example.label, example.group))
    return (
        label, example.id.encode(), payload_sha256(example.payload), group, example.split, example.role, example.shape,
        part, 0, length, example.bits, example.side, None,
    )  # fmt: skip


# ---- Between them. ----


def order_keys(_: int, parts: int, kind: str, options: IngestOptions, staging: Staging, shard_rows: int) -> None:
    """Any element, once all parts are staged -> nothing: writes what the shards hold, and the rest of the corpus.

    Raises:
      OSError: if the disk of this machine is full.
    """
    names = [staging.part(number, ".parquet").name for number in range(parts)]
    try:
        with (
            storage.fetched(staging.path, names) as local, tempfile.TemporaryDirectory() as scratch,
            duck.connect(scratch=scratch, memory=KEYS_MEMORY) as db,
        ):  # fmt: skip
            payload = keys.order_rows(db, [local / name for name in names], kind)
            rule = keys.assign_splits(db, options)
            manifests.write_json_lines(staging.rejected, keys.rejected(db))
            shards = {name: _write_keys(db, name, staging, shard_rows) for name in SPLITS}
            manifest = CorpusManifest(
                source=str(options), source_stamp=None, features={kind: payload} if payload else {}, split_rule=rule,
                leaks=keys.count_leaks(db), splits={name: _describe(db, name, staging.path) for name in SPLITS},
                given_triplets=write_given(staging.path / "given.npy", keys.given_triplets(db)), **keys.facts(db),
            )  # fmt: skip
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:  # where it spills to
        raise OSError(str(error).partition("\n")[0]) from None
    manifests.write_json(staging.ordered, (manifest, shards))


def _write_keys(db: duckdb.DuckDBPyConnection, split: str, staging: Staging, shard_rows: int) -> int:
    """Returns how many shards a split gets."""
    count = 0
    for rows in keys.shards(db, split, shard_rows, SHARD_BYTES):
        storage.save_array(staging.shard_keys(split, count), rows)
        count += 1
    return count


def _describe(db: duckdb.DuckDBPyConnection, split: str, directory: Path) -> SplitManifest:
    """Writes a split's labels and where their rows begin. Returns the manifest's entry, without shards."""
    first_rows, labels = directory / f"{split}.first_rows.npy", directory / f"{split}.labels.jsonl"
    first = keys.first_rows(db, split)
    storage.save_array(first_rows, first)
    manifests.write_json_lines(labels, keys.labels(db, split))
    return SplitManifest(
        first_rows=Shard.of(first_rows, len(first)), labels=Shard.of(labels, len(first) - 1), shards=[],
        **keys.count_rows(db, split),
    )  # fmt: skip


def write_given(path: Path, triplets: np.ndarray) -> Shard | None:
    """Writes the given triplets, if there are any. Returns the manifest's entry."""
    if not len(triplets):
        return None
    storage.save_array(path, triplets)
    return Shard.of(path, len(triplets))


# ---- The second pass. ----


def write_shards(
    shards: dict[str, int], staging: Staging, corpus: Path, beam_options: PipelineOptions, bits: int | None
) -> dict[str, list[CorpusShard]]:
    """Writes each split's shards, so many. bits: as in the manifest. Returns its entries."""
    write = functools.partial(write_shard, staging=staging, corpus=corpus, bits=bits)
    with live(Stage.of_files("write", "shards", sum(shards.values()), corpus, ".npy")):
        run(
            beam_options,
            lambda pipeline: (
                pipeline
                | "Count shards" >> beam.Create(list(shards.items()))
                | "List shards" >> beam.FlatMapTuple(lambda split, of: ((split, n, of) for n in range(of)))
                | "Spread" >> beam.Reshuffle()
                | "Write" >> beam.Map(write)
                | "Gather" >> beam.combiners.ToList()
                | "Note" >> beam.Map(lambda written: manifests.write_json(staging.shards, written))
            ),
        )
    written = msgspec.json.decode(staging.shards.read_bytes(), type=list[Written])
    written.sort(key=lambda entry: entry[:2])
    return {name: [shard for split, _, shard in written if split == name] for name in shards}


def write_shard(shard: tuple[str, int, int], staging: Staging, corpus: Path, bits: int | None) -> Written:
    """(split, number, of) -> (split, number, CorpusShard): copies a shard's records, writes its index."""
    split, number, of = shard
    rows = storage.open_array(staging.shard_keys(split, number))
    name = f"{split}-{number:05d}-of-{of:05d}"
    records = _staged_records(rows, staging)
    if bits and bits < 16:  # TensorFlow decodes the upper 8 of 16
        for i in np.flatnonzero(rows["bits"] >= 0):
            records[i] = _of_8_bits(records[i], bits)
    written = tfrecords.write_records(corpus / f"{name}.tfrecord", records)
    index = np.empty(len(rows), INDEX)
    index["length"] = [len(record) for record in records]
    index["offset"] = tfrecords.offsets_of(index["length"].tolist())
    index["content"], index["group"] = rows["content"], rows["group"]
    path = corpus / f"{name}.index.npy"
    storage.save_array(path, index)
    return split, number, CorpusShard(
        **vars(written), index=path.name, index_bytes=path.stat().st_size, index_sha256=storage.sha256_of(path)
    )  # fmt: skip


def _of_8_bits(record: bytes, bits: int) -> bytes:
    features = tfrecords.parse_example(record)
    return tfrecords.make_example(features | {"image": [as_8_bits(features["image"][0], bits)]})


def _staged_records(rows: np.ndarray, staging: Staging) -> list[bytes]:
    """The staged records of rows, in their order; each part is read in order of position."""
    part, offset, length = (np.ascontiguousarray(rows[name]) for name in ("part", "offset", "length"))
    records: list[bytes] = [b""] * len(rows)
    order = np.lexsort((offset, part))
    for where in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        path = staging.part(int(part[where[0]]), ".tfrecord")
        found = tfrecords.read_records_at(path, offset[where].tolist(), length[where].tolist())
        for i, record in zip(where.tolist(), found, strict=True):
            records[i] = record
    return records
