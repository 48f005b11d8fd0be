"""Any source to corpus shards, once: rows ordered by (label, id), three splits, an index for reads by row.

    python -m pipeline.ingest --run_dir runs/digits --source digits

Two passes. The first streams the source's parts and stages each part's examples beside their keys; the keys
alone are sorted into rows, splits and shards; the second copies each shard's records by position. No payload
goes through a shuffle.
"""

import argparse
import collections
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import command, job, records, storage
from pipeline.records import InputError
from pipeline.selection import draw_key
from pipeline.sources import SOURCES, Example, Rejected, open_source

SHARD_ROWS = 4096
SHARD_BYTES = 64 << 20
SPLIT_BY_CLASS_FROM = 20  # classes
KEYS = pa.schema(
    [
        ("label", pa.binary()), ("id", pa.binary()), ("sha256", pa.binary()), ("group", pa.binary()),
        ("shape", pa.list_(pa.int64())), ("part", pa.int64()), ("offset", pa.int64()), ("length", pa.int64()),
    ]
)  # fmt: skip


class Stage(beam.DoFn):
    """(number, part) -> number: writes the part's examples, their keys and what was rejected into `staging`."""

    def __init__(self, source: str, kind: str, staging: Path):
        self.source, self.kind, self.staging = source, kind, staging

    def process(self, element: tuple[int, Any]) -> Iterator[int]:
        number, part = element
        keys: dict[str, list[Any]] = {name: [] for name in KEYS.names}
        rejected: list[dict[str, str]] = []

        def staged() -> Iterator[bytes]:
            for example in SOURCES[self.source].read(part):
                if isinstance(example, Rejected):
                    rejected.append({"source": example.source, "reason": example.reason})
                    continue
                record = _record(example, self.kind)
                keys["label"].append(example.label.encode())
                keys["id"].append(example.id.encode())
                keys["sha256"].append(_payload_sha256(example))
                keys["group"].append(None if example.group is None else example.group.encode())
                keys["shape"].append(list(example.shape))
                keys["part"].append(number)
                keys["length"].append(len(record))
                yield record

        records.write_records(self.staging / f"part-{number:05d}.tfrecord", staged())
        keys["offset"] = records.offsets_of(keys["length"]).tolist()
        table = pa.table(keys, schema=KEYS)
        storage.write_atomically(
            self.staging / f"part-{number:05d}.parquet", lambda temporary: pq.write_table(table, temporary)
        )
        records.write_json(self.staging / f"part-{number:05d}.rejected.json", rejected)
        yield number


def _record(example: Example, kind: str) -> bytes:
    features: dict[str, Any] = {"id": [example.id.encode()], "label": [example.label.encode()]}
    if example.group is not None:
        features["group"] = [example.group.encode()]
    features[kind] = [example.payload] if isinstance(example.payload, bytes) else example.payload
    return records.make_example(features)


def _payload_sha256(example: Example) -> bytes:
    payload = example.payload if isinstance(example.payload, bytes) else example.payload.tobytes()
    return hashlib.sha256(payload).digest()


def staging_of(run_dir: Path) -> Path:
    return run_dir / "corpus.new"


def keys_path(staging: Path, split: str, number: int) -> Path:
    """The keys of a shard's rows, from `cut_shards` to `WriteShard`: too large to travel inside the graph."""
    return staging / f"{split}-{number:05d}.parquet"


def read_table(path: Path) -> pa.Table:
    with path.open("rb") as file:
        return pq.read_table(file)


class WriteShard(beam.DoFn):
    """(split, number, of) -> (split, number, manifest entry): copies a shard's records, writes its index."""

    def __init__(self, staging: Path, directory: Path):
        self.staging, self.directory = staging, directory

    def process(self, element: tuple[str, int, int]) -> Iterator[tuple[str, int, dict[str, Any]]]:
        split, number, of = element
        keys = read_table(keys_path(self.staging, split, number))
        part, offset, length = (keys[name].to_numpy() for name in ("part", "offset", "length"))
        staged: list[bytes] = [b""] * len(keys)
        order = np.lexsort((offset, part))
        for where in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            path = self.staging / f"part-{part[where[0]]:05d}.tfrecord"
            found = records.read_records_at(path, offset[where].tolist(), length[where].tolist())
            for i, record in zip(where.tolist(), found, strict=True):
                staged[i] = record
        name = f"{split}-{number:05d}-of-{of:05d}"
        entry = records.write_records(self.directory / f"{name}.tfrecord", staged)
        index = np.empty(len(keys), records.INDEX)
        index["offset"], index["length"] = records.offsets_of(length), length
        index["content"], index["group"] = keys["content"].to_numpy(), keys["group_code"].to_numpy()
        path = self.directory / f"{name}.index.npy"
        storage.write_atomically(path, lambda temporary: np.save(temporary, index))
        entry |= {
            "index": path.name,
            "index_bytes": path.stat().st_size,
            "index_sha256": records.sha256_of_file(path),
        }
        yield split, number, entry


def order_keys(staging: Path, parts: int) -> tuple[pa.Table, list[dict[str, str]]]:
    """All keys ordered by (label, id), without repeated ids; and what was rejected so far."""
    tables = [read_table(staging / f"part-{n:05d}.parquet") for n in range(parts)]
    keys = pa.concat_tables([KEYS.empty_table(), *tables])
    rejected = [
        entry for n in range(parts) for entry in json.loads((staging / f"part-{n:05d}.rejected.json").read_text())
    ]
    by_id = keys.sort_by([("id", "ascending"), ("part", "ascending"), ("offset", "ascending")])
    ids = by_id["id"].combine_chunks()
    if len(ids) > 1:
        again = pc.equal(ids[1:], ids[:-1])
        rejected += [
            {"source": id.as_py().decode(), "reason": "the id was there before; the first is kept"}
            for id in ids[1:].filter(again)
        ]
        keys = by_id.filter(pa.concat_arrays([pa.array([True]), pc.invert(again)]))
    return keys.sort_by([("label", "ascending"), ("id", "ascending")]), rejected


def common_shape(keys: pa.Table, kind: str) -> tuple[list[int | None], pa.Table, list[dict[str, str]]]:
    """The shape all examples share (None where images differ). Vectors of another length are rejected."""
    shapes = collections.Counter(tuple(shape) for shape in keys["shape"].to_pylist())
    if kind == "vector":
        [(shape, _)] = shapes.most_common(1)
        fits = pa.array([tuple(value) == shape for value in keys["shape"].to_pylist()])
        rejected = [
            {
                "source": row["id"].decode(),
                "reason": f"vector of {row['shape'][0]} numbers, most have {shape[0]}",
            }
            for row in keys.filter(pc.invert(fits)).to_pylist()
        ]
        return list(shape), keys.filter(fits), rejected
    sizes = {shape[:2] for shape in shapes}
    height, width = next(iter(sizes)) if len(sizes) == 1 else (None, None)
    return [height, width, max(shape[2] for shape in shapes)], keys, []


def assign_splits(keys: pa.Table, validation_share: float, eval_share: float, seed: int) -> tuple[np.ndarray, str]:
    """int8 [rows], positions in records.SPLITS; and `class` or `example`, by what the corpus was split.

    By class (unseen classes) from 20 classes up; below, by example, class by class, so that each split has
    every class. The draw is a hash of the seed and the label or id. Within a class, copies of a payload and rows
    of a group stay together: a held-out copy would be no test.
    """
    labels, first, code = np.unique(np.array(keys["label"].to_pylist(), object), return_index=True, return_inverse=True)

    def ranks(names: list[bytes]) -> np.ndarray:
        key = str(draw_key(seed, 0, "split")).encode()
        digests = [hashlib.blake2b(name, digest_size=8, key=key).digest() for name in names]
        ordered = np.sort(np.array(digests, "S8"))
        return np.searchsorted(ordered, np.array(digests, "S8"))  # equal names, equal ranks

    def cut(rank: np.ndarray, size: int) -> np.ndarray:
        held_out, validation = round((validation_share + eval_share) * size), round(validation_share * size)
        return np.where(rank < validation, 1, np.where(rank < held_out, 2, 0)).astype(np.int8)

    if len(labels) >= SPLIT_BY_CLASS_FROM:
        return cut(ranks(labels.tolist()), len(labels))[code], "class"
    split = np.zeros(len(keys), np.int8)
    ids = keys["id"].to_pylist()
    groups, contents = keys["group"].to_pylist(), keys["sha256"].to_pylist()
    units = [group or content for group, content in zip(groups, contents, strict=True)]
    for start, stop in zip(first, [*first[1:], len(keys)], strict=True):
        leader = {unit: row for row, unit in reversed(list(enumerate(units[start:stop])))}
        names = [ids[start + leader[unit]] for unit in units[start:stop]]  # each row drawn by its unit's first id
        split[start:stop] = cut(ranks(names), stop - start)
    return split, "example"


def describe_split(keys: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
    """Adds codes of content and group to a split's ordered keys, and describes the split for the manifest.

    content: the first row with the same payload; group: a number, -1 without a group.
    copies: rows whose payload an earlier row has; conflicts: those under another label than that row.
    """
    label = np.array(keys["label"].to_pylist(), object)
    _, first, which = np.unique(np.array(keys["sha256"].to_pylist(), "S32"), return_index=True, return_inverse=True)
    content = first[which]
    group = keys["group"].combine_chunks().dictionary_encode().indices.fill_null(-1).cast(pa.int64())
    keys = keys.append_column("content", pa.array(content, pa.int64())).append_column("group_code", group)
    labels, first_rows = np.unique(label, return_index=True)
    return keys, {
        "rows": len(keys),
        "labels": [name.decode() for name in labels],
        "first_rows": [int(row) for row in first_rows] + [len(keys)],
        "copies": int((content != np.arange(len(keys))).sum()),
        "label_conflicts": int((label != label[content]).sum()) if len(label) else 0,
    }


def cut_shards(split: str, keys: pa.Table, staging: Path) -> list[tuple[str, int, int]]:
    """Cuts ordered keys into shards of at most SHARD_ROWS rows and about SHARD_BYTES bytes; stages each one's keys."""
    begins, size = [0] if len(keys) else [], 0
    for row, length in enumerate(keys["length"].to_pylist()):
        if row > begins[-1] and (row - begins[-1] == SHARD_ROWS or size + length > SHARD_BYTES):
            begins.append(row)
            size = 0
        size += length
    for number, begin in enumerate(begins):
        end = begins[number + 1] if number + 1 < len(begins) else len(keys)
        part = keys.slice(begin, end - begin)
        storage.write_atomically(keys_path(staging, split, number), functools.partial(pq.write_table, part))
    return [(split, number, len(begins)) for number in range(len(begins))]


def ingest(arguments: argparse.Namespace, options: Any) -> dict[str, Any]:
    """Makes the corpus, its manifest last. Returns the manifest."""
    name, source, argument = open_source(arguments.source)
    parts, kind = source.parts(argument), source.kind(argument)
    # While there is a staging directory, a corpus without a manifest is a half one of ours.
    new, staging = arguments.run_dir / "corpus", staging_of(arguments.run_dir)
    if staging.exists():
        storage.remove(new)
        storage.remove(staging)
    records.write_json(staging / "source.json", {"source": arguments.source})
    with job.progress(("read", len(parts), lambda: job.count_files(staging, ".rejected.json"))):
        job.run(
            options,
            lambda pipeline: (
                pipeline
                | "List parts" >> beam.Create(list(enumerate(parts)))
                | "Spread" >> beam.Reshuffle()
                | "Stage" >> beam.ParDo(Stage(name, kind, staging))
            ),
        )

    keys, rejected = order_keys(staging, len(parts))
    shape: list[int | None] = []
    if len(keys):
        shape, keys, misshapen = common_shape(keys, kind)
        rejected += misshapen
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected)
    refused = staging / "rejected.jsonl"
    storage.write_atomically(refused, lambda path: path.write_text(lines, encoding="utf-8"))
    if not len(keys):
        raise InputError(f"{arguments.source} holds no example; {len(rejected)} were rejected: {rejected[:3]}")
    share = len(rejected) / (len(rejected) + len(keys))
    if share > arguments.max_rejected:
        raise InputError(
            f"{arguments.source}: {len(rejected)} examples of {len(rejected) + len(keys)} are rejected, {share:.1%}, "
            f"--max_rejected is {arguments.max_rejected:.1%}. The first: {rejected[0]}; all are in "
            f"{refused}. Mend the source, or raise --max_rejected."
        )
    split, by = assign_splits(keys, arguments.validation_share, arguments.eval_share, arguments.seed)
    described = {s: describe_split(keys.filter(pa.array(split == n))) for n, s in enumerate(records.SPLITS)}
    manifest: dict[str, Any] = {
        "format": records.CORPUS_FORMAT,
        "source": arguments.source,
        "features": {kind: {"kind": kind, "shape": shape, "dtype": "uint8" if kind == "image" else "float32"}},
        "grouped": keys["group"].null_count < len(keys),
        "split_rule": {
            "by": by, "seed": arguments.seed,
            "validation_share": arguments.validation_share, "eval_share": arguments.eval_share,
        },
        "rejected": len(rejected),
        "splits": {s: {**entry, "shards": []} for s, (_, entry) in described.items()},
    }  # fmt: skip
    if manifest["splits"]["train"]["rows"] == 0:
        raise InputError(f"{arguments.source}: no example is left for the train split. Lower the held-out shares.")
    shards = [shard for s, (split_keys, _) in described.items() for shard in cut_shards(s, split_keys, staging)]

    def commit(entries: list[tuple[str, int, dict[str, Any]]]) -> None:
        for s, _, entry in sorted(entries, key=lambda e: e[:2]):
            manifest["splits"][s]["shards"].append(entry)
        manifest["fingerprint"] = records.corpus_fingerprint(manifest)
        storage.write_atomically(new / refused.name, lambda path: path.write_text(lines, encoding="utf-8"))
        records.write_json(new / "corpus.json", manifest)

    with job.progress(("write", len(shards), lambda: job.count_files(new, ".npy"))):
        job.run(
            options,
            lambda pipeline: (
                pipeline
                | "List shards" >> beam.Create(shards)
                | "Spread" >> beam.Reshuffle()
                | "Write" >> beam.ParDo(WriteShard(staging, new))
                | "Gather" >> beam.combiners.ToList()
                | "Commit" >> beam.Map(commit)
            ),
        )
    storage.remove(staging)
    return records.read_json(new / "corpus.json", records.CORPUS_FORMAT)


def summary(manifest: dict[str, Any], run_dir: Path) -> str:
    name, spec = next(iter(manifest["features"].items()))
    size = " x ".join("any" if n is None else str(n) for n in spec["shape"])
    lines = [f"corpus of {manifest['source']}: {name} {size}, split by {manifest['split_rule']['by']}"]
    for split, entry in manifest["splits"].items():
        lines.append(f"  {split:<11}{entry['rows']:>8,} rows  {len(entry['labels']):>6,} classes")
    copies = sum(entry["copies"] for entry in manifest["splits"].values())
    conflicts = sum(entry["label_conflicts"] for entry in manifest["splits"].values())
    if copies:
        lines.append(f"  {copies:,} copies of another row's payload, {conflicts:,} of them under another label")
    if manifest["rejected"]:
        lines.append(f"  {manifest['rejected']:,} rejected, with reasons in {run_dir / 'corpus' / 'rejected.jsonl'}")
    lines.append(f"  in {run_dir / 'corpus'}   next: python -m pipeline.mine --run_dir {run_dir}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    sources = "; ".join(f"{n}{':' + s.argument if s.argument else ''} ({s.help})" for n, s in SOURCES.items())
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.ingest",
        description="Turn a source into corpus shards. Flags of Apache Beam pass through.",
        allow_abbrev=False,
    )
    parser.add_argument("--run_dir", type=storage.location, required=True)
    parser.add_argument("--source", required=True, help=sources)
    parser.add_argument("--validation_share", type=float, default=0.1, help="held out for choices (0.1)")
    parser.add_argument("--eval_share", type=float, default=0.2, help="held out for reports (0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (0)")
    parser.add_argument("--max_rejected", type=float, default=0.1, help="share of bad examples that is too much (0.1)")
    command.add_options(parser)
    arguments, rest = parser.parse_known_args(argv)
    command.begin(arguments)
    for name in ("validation_share", "eval_share"):
        if not 0 <= getattr(arguments, name) < 1:
            raise InputError(f"--{name} must be in [0, 1); found {getattr(arguments, name)}")
    if arguments.validation_share + arguments.eval_share >= 1:
        raise InputError("--validation_share and --eval_share leave nothing to train on")
    if not 0 <= arguments.max_rejected <= 1:
        raise InputError(f"--max_rejected must be in [0, 1]; found {arguments.max_rejected}")
    options = job.beam_options(rest)
    with command.hold(arguments.run_dir, "ingest"):
        return ingest_once(arguments, options)


def ingest_once(arguments: argparse.Namespace, options: Any) -> int:
    """Ingests, unless the run directory has that corpus; refuses if it has another."""
    there = arguments.run_dir / "corpus" / "corpus.json"
    if there.exists() and not records.is_torn(there, staging_of(arguments.run_dir)):
        manifest = records.read_json(there, records.CORPUS_FORMAT)
        rule = manifest["split_rule"]
        names = ("validation_share", "eval_share", "seed")
        asked = {"source": arguments.source, **{name: getattr(arguments, name) for name in names}}
        held = {"source": manifest["source"], **{name: rule[name] for name in names}}
        if asked != held:
            raise InputError(f"{there.parent} already holds {held}, asked for {asked}. Use another --run_dir.")
        storage.remove(staging_of(arguments.run_dir))  # if the run that ingested was killed just then
        command.note(**facts(manifest))
        print(f"already ingested; nothing to do\n{summary(manifest, arguments.run_dir)}")
        return 0
    if storage.names(there.parent) and not staging_of(arguments.run_dir).exists():
        raise InputError(f"{there.parent} holds files but no corpus.json. Remove it, or use another --run_dir.")
    manifest = ingest(arguments, options)
    command.note(**facts(manifest))
    print(summary(manifest, arguments.run_dir))
    return 0


def facts(manifest: dict[str, Any]) -> dict[str, Any]:
    rows = {split: entry["rows"] for split, entry in manifest["splits"].items()}
    return {"corpus_fingerprint": manifest["fingerprint"], "rows": rows, "rejected": manifest["rejected"]}


if __name__ == "__main__":
    # Imported under its own name, so that workers can unpickle what is defined here.
    from pipeline.ingest import main as imported_main

    command.run(imported_main)
