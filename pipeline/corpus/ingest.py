"""Any source to a corpus, once: rows ordered by (label, id), three splits, an index for reads by row.

Two passes. The first streams the source's parts and stages each part's examples beside their keys; then one worker
sorts the keys alone into rows, splits and shards; the second copies each shard's records by position. No payload goes
through a shuffle, and no row through a graph or through the process that starts it.
"""

import functools
import itertools
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import msgspec
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.corpus import keys
from pipeline.corpus.manifest import (
    INDEX,
    SPLITS,
    CorpusManifest,
    CorpusShard,
    Feature,
    SplitManifest,
    read_corpus_manifest,
)
from pipeline.corpus.options import IngestOptions
from pipeline.corpus.sources import duck, open_sources
from pipeline.corpus.sources.encoding import as_8_bits
from pipeline.corpus.sources.source import Example, Rejected, Source, bounded, payload_sha256
from pipeline.corpus.staging import Staging, write_table
from pipeline.errors import InputError
from pipeline.files import manifests, storage, tfrecords
from pipeline.files.layout import Run
from pipeline.files.manifests import Shard
from pipeline.process.beam import run
from pipeline.process.progress import Stage, live

SHARD_ROWS = 4096
SHARD_BYTES = 64 << 20
KEYS_MEMORY = "500MB"  # of what sorts them; with twice that it is not faster
Written = tuple[str, int, CorpusShard]  # split, number, what the manifest says of it
Ordered = tuple[CorpusManifest, dict[str, int]]  # without its shards; how many each split gets


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What is in a run directory's corpus.

    alike: labels that differ in case, spaces or form only. already: it was there before. compared: its source's files
    are the same.
    """

    run_dir: str
    source: str
    payload: Feature
    held_out: str
    leaks: dict[str, int]
    rows: dict[str, int]
    classes: dict[str, int]
    copies: int
    label_conflicts: int
    given_negatives: int
    given_triplets: int
    alike: list[list[str]]
    rejected: int
    bits: int | None
    fingerprint: str
    already: bool
    compared: bool

    def __str__(self) -> str:
        place = Run(storage.location(self.run_dir))
        size = " x ".join("any" if n is None else str(n) for n in self.payload.shape)
        lines = ["already ingested; nothing to do"] if self.already else []
        if self.already and not self.compared:
            lines.append("whether what it names changed since was not looked at")
        lines.append(f"corpus of {self.source}: {f'{self.payload.kind} {size}'.strip()}, {self.held_out}")
        for split, rows in self.rows.items():
            lines.append(f"  {split:<11}{rows:>8,} rows  {self.classes[split]:>6,} classes")
        if self.copies:
            conflicts = f"{self.label_conflicts:,} of them under another label"
            lines.append(f"  {self.copies:,} copies of another row's payload, {conflicts}")
        for split, leaked in self.leaks.items():
            if leaked:
                lines.append(f"  {leaked:,} rows of {split} have a copy, or a row of their group, in train")
        if self.given_negatives:
            lines.append(f"  {self.given_negatives:,} given negatives make {self.given_triplets:,} triplets in train")
        if self.bits:
            lines.append(f"  images of 16 bits a pixel are among them: {2 ** max(8, self.bits) - 1:,} becomes 255")
        if self.alike:
            first = "; ".join(", ".join(map(ascii, names)) for names in self.alike[:3])
            lines.append(f"  {len(self.alike):,} times labels differ only in case, spaces or form. Kept apart: {first}")
        stored = sum(self.rows.values())
        why = f", with reasons in {place.rejected}" if self.rejected else ""
        lines.append(f"  {stored + self.rejected:,} rows read: {stored:,} stored, {self.rejected:,} rejected{why}")
        lines.append(f"  in {place.corpus}   next: python -m trainer.init --run_dir {self.run_dir}")
        return "\n".join(lines)


def ingest(
    run_dir: Path, options: IngestOptions, beam_options: PipelineOptions, *, shard_rows: int = SHARD_ROWS
) -> Ingested:
    """Makes the corpus of a run directory, its manifest last, unless it has that corpus.

    Raises:
      InputError: if the run directory has another corpus, if the source changed since, or if too much is rejected.
    """
    place = Run(run_dir)
    already = place.corpus_manifest.exists()
    manifest = _compare(place, options) if already else _make(place, options, beam_options, shard_rows)
    splits = manifest.splits
    return Ingested(
        run_dir=str(run_dir), source=manifest.source, payload=next(iter(manifest.features.values())),
        held_out=manifest.held_out, leaks=manifest.leaks, rows={name: split.rows for name, split in splits.items()},
        classes={name: split.labels.records for name, split in splits.items()},
        copies=sum(split.copies for split in splits.values()),
        label_conflicts=sum(split.label_conflicts for split in splits.values()),
        given_negatives=manifest.given_negatives,
        given_triplets=manifest.given_triplets.records if manifest.given_triplets else 0,
        alike=manifest.alike, rejected=manifest.rejected, bits=manifest.bits, fingerprint=manifest.fingerprint,
        already=already, compared=manifest.source_stamp is not None,
    )  # fmt: skip


def _make(
    place: Run, options: IngestOptions, beam_options: PipelineOptions, shard_rows: int
) -> CorpusManifest:
    # While there is a staging directory, a corpus without a manifest is a half one of ours.
    if storage.names(place.corpus) and not place.staging.exists():
        raise InputError(f"{place.corpus} holds files but no corpus.json. Remove it, or use another --run_dir.")
    staging = Staging(place.staging.absolute() / uuid.uuid4().hex)  # an older job on an engine may still write into its
    source = open_sources(options, staging.path)
    if place.staging.exists():
        storage.remove(place.corpus)
        storage.remove(place.staging)
    stamp = source.stamp()
    found, shards = stage(source, staging, options, beam_options, shard_rows)
    _check(found, options, staging)
    written = write_shards(shards, staging, place.corpus.absolute(), beam_options, found.bits)
    for name in [place.rejected.name, *(entry.file for entry in found.arrays())]:
        storage.copy(staging.path / name, place.corpus / name)
    splits = {name: replace(split, shards=written[name]) for name, split in found.splits.items()}
    manifest = replace(found, source_stamp=stamp, splits=splits)
    manifest = replace(manifest, fingerprint=manifest.computed_fingerprint())
    manifests.write(place.corpus_manifest, manifest)  # from here on there is a corpus
    storage.remove(place.staging)
    return manifest


def _check(found: CorpusManifest, options: IngestOptions, staging: Staging) -> None:
    """Raises InputError if there is no example, if too much is rejected, or if a split lacks what it must have."""
    rows = sum(split.rows for split in found.splits.values())
    with staging.rejected.open("rb") as file:
        first = [msgspec.json.decode(line, type=Rejected) for line in itertools.islice(file, 3)]
    if not rows:
        told = "".join(f"; {entry}" for entry in first)
        raise InputError(f"{options} holds no example; {found.rejected} were rejected{told}")
    share = found.rejected / (found.rejected + rows)
    if share > options.max_rejected:
        raise InputError(
            f"{options}: {found.rejected} examples of {found.rejected + rows} are rejected, {share:.1%}, "
            f"--max_rejected is {options.max_rejected:.1%}. The first: {first[0]}; all are in {staging.rejected}. Mend "
            f"the source, or raise --max_rejected."
        )
    for name, sources in (("validation", options.validation_source), ("eval", options.eval_source)):
        if sources and name not in found.given:
            raise InputError(
                f"--{name}_source {' '.join(sources)}: none of its rows is left, all were rejected. The reasons are in "
                f"{staging.rejected}."
            )
    if not found.splits["train"].rows:
        raise InputError(f"{options}: no example is left for the train split. Lower the held-out shares.")


def _compare(place: Run, options: IngestOptions) -> CorpusManifest:
    """Raises InputError if the corpus is another than what is asked for, or if its source's files changed."""
    manifest = read_corpus_manifest(place.path)
    asked = {name: getattr(options, name) for name in ("validation_share", "eval_share", "seed")}
    held = {name: getattr(manifest.split_rule, name) for name in asked}
    if options.split_by != "auto":
        asked["split_by"], held["split_by"] = options.split_by, manifest.split_rule.by
    if (str(options), asked) != (manifest.source, held):
        raise InputError(
            f"{place.corpus} already holds {manifest.source} with {held}, asked for {options} with {asked}. "
            f"Use another --run_dir."
        )
    storage.remove(place.staging)  # if the run that ingested was killed just then
    if open_sources(options).stamp() != manifest.source_stamp:
        raise InputError(
            f"{options}: its files have other names, sizes or times than when {place.corpus} was made from "
            f"them. A run directory keeps its corpus: ingest into a new --run_dir. What was trained goes on there: "
            f"python -m trainer.init --run_dir NEW --model {place.best_checkpoint}"
        )
    return manifest


# ---- The first pass. ----


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
    with live(_progress("read", "parts", len(parts), staging.path, ".parquet")):
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


def _progress(name: str, unit: str, total: int, directory: Path, suffix: str) -> Stage:
    return Stage(name=name, unit=unit, total=total, done=lambda: storage.count_files(directory, suffix))


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
    with live(_progress("write", "shards", sum(shards.values()), corpus, ".npy")):
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
