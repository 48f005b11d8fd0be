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
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import command, job, records, storage
from pipeline.progress import Stage, live
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


OURS = ("id", "label", "group", "image", "text", "vector", "row", "anchor", "positive", "negative", "d_ap", "d_an",
        "kind", "scope")  # fmt: skip  # features with a meaning in a corpus or a pack
DTYPES = {"image": "uint8", "text": "string", "vector": "float32"}


def save_parts(staging: Path, parts: list[Any]) -> None:
    """The source's parts for `StagePart`. In the graph that goes to an engine, the names of all files would not fit."""
    lines = [json.dumps(part).encode() + b"\n" for part in parts]
    starts = np.cumsum([0, *map(len, lines)])
    storage.write_atomically(staging / "parts.jsonl", lambda path: path.write_bytes(b"".join(lines)))
    storage.write_atomically(staging / "parts.npy", lambda path: np.save(path, starts))


def read_part(staging: Path, number: int) -> Any:
    start, stop = records.open_array(staging / "parts.npy")[number : number + 2].tolist()
    with (staging / "parts.jsonl").open("rb") as file:
        file.seek(start)
        return json.loads(file.read(stop - start))


class StagePart(beam.DoFn):
    """A part's number -> the same number: writes the part's examples, their keys and what was rejected into `staging`.

    keys_only: the examples themselves are left out.
    """

    def __init__(self, source: str, kind: str, staging: Path, keys_only: bool = False):
        self.source, self.kind, self.staging, self.keys_only = source, kind, staging, keys_only

    def process(self, number: int) -> Iterator[int]:
        started = time.monotonic()
        part = read_part(self.staging, number)
        keys: dict[str, list[Any]] = {name: [] for name in KEYS.names}
        rejected: list[dict[str, str]] = []
        extra: dict[str, list[Any]] = {}  # name: dtype, fewest values, most values, examples that have it

        def staged() -> Iterator[bytes]:
            for example in SOURCES[self.source].read(part):
                if isinstance(example, Rejected):
                    rejected.append({"source": example.source, "reason": example.reason})
                    continue
                record = _record(example, self.kind)
                for name, value in example.extra.items():
                    seen = [_dtype(value), len(value), len(value), 1]
                    extra[name] = _both(name, extra[name], seen) if name in extra else seen
                keys["label"].append(example.label.encode())
                keys["id"].append(example.id.encode())
                keys["sha256"].append(_payload_sha256(example.payload))
                keys["group"].append(None if example.group is None else example.group.encode())
                keys["shape"].append(list(example.shape))
                keys["part"].append(number)
                keys["length"].append(len(record))
                yield record

        if self.keys_only:
            collections.deque(staged(), maxlen=0)
        else:
            records.write_records(self.staging / f"part-{number:05d}.tfrecord", staged())
        keys["offset"] = records.offsets_of(keys["length"]).tolist()
        table = pa.table(keys, schema=KEYS)
        storage.write_atomically(
            self.staging / f"part-{number:05d}.parquet", lambda temporary: pq.write_table(table, temporary)
        )
        notes = {"rejected": rejected, "extra": extra, "examples": len(table)}
        records.write_json(self.staging / f"part-{number:05d}.notes.json", notes)
        job.count("read", "examples", len(table), started)
        yield number


def _dtype(value: Any) -> str:
    return "bytes" if isinstance(value, list) else str(value.dtype)


def _both(name: str, one: list[Any], other: list[Any]) -> list[Any]:
    if one[0] != other[0]:
        raise InputError(f"feature {name!r} is {one[0]} in some examples and {other[0]} in others. Make it one.")
    return [one[0], min(one[1], other[1]), max(one[2], other[2]), one[3] + other[3]]


def extra_features(notes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the manifest says of features that only pass through: of one shape, or None where examples differ."""
    found: dict[str, list[Any]] = {}
    for note in notes:
        for name, seen in note["extra"].items():
            found[name] = _both(name, found[name], seen) if name in found else seen
    examples = sum(note["examples"] for note in notes)
    return {
        stored_name(name): {
            "kind": "extra",
            "shape": [None] if count < examples or fewest < most else [] if most == 1 else [most],
            "dtype": dtype,
        }
        for name, (dtype, fewest, most, count) in sorted(found.items())
    }


def stored_name(name: str) -> str:
    """The name under which a feature of the source passes through."""
    return f"source/{name}" if name in OURS else name


def _record(example: Example, kind: str) -> bytes:
    features: dict[str, Any] = {"id": [example.id.encode()], "label": [example.label.encode()]}
    if example.group is not None:
        features["group"] = [example.group.encode()]
    features[kind] = [example.payload] if isinstance(example.payload, bytes) else example.payload
    features |= {stored_name(name): value for name, value in example.extra.items()}
    return records.make_example(features)


def _payload_sha256(payload: bytes | np.ndarray) -> bytes:
    return hashlib.sha256(payload if isinstance(payload, bytes) else payload.tobytes()).digest()


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
        started = time.monotonic()
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
        job.count("write", "rows", len(keys), started)
        yield split, number, entry


def order_keys(staging: Path, notes: list[dict[str, Any]]) -> tuple[pa.Table, list[dict[str, str]]]:
    """All keys ordered by (label, id), without repeated ids; and what was rejected so far.

    notes: what `StagePart` left beside each part's keys.
    """
    tables = [read_table(staging / f"part-{n:05d}.parquet") for n in range(len(notes))]
    keys = pa.concat_tables([KEYS.empty_table(), *tables])
    rejected = [entry for note in notes for entry in note["rejected"]]
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
    """The shape all examples share, None where images differ. Vectors of another length are rejected."""
    if kind == "text":
        return [], keys, []
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


def cut_shards(split: str, keys: pa.Table, staging: Path) -> int:
    """Cuts ordered keys into shards of at most SHARD_ROWS rows and about SHARD_BYTES bytes; stages each one's keys.

    Returns how many.
    """
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
    return len(begins)


def list_shards(split: str, of: int) -> Iterator[tuple[str, int, int]]:
    for number in range(of):
        yield split, number, of


def commit(entries: list[tuple[str, int, dict[str, Any]]], staging: Path, directory: Path) -> None:
    """Writes the corpus' manifest, which lies in `staging` without its shards: from here on there is a corpus."""
    manifest = records.read_json(staging / "manifest.json", records.CORPUS_FORMAT)
    for split, described in manifest["splits"].items():
        described["shards"] = [entry for at, _, entry in sorted(entries, key=lambda e: e[:2]) if at == split]
    manifest["fingerprint"] = records.corpus_fingerprint(manifest)
    lines = (staging / "rejected.jsonl").read_text(encoding="utf-8")
    storage.write_atomically(directory / "rejected.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))
    records.write_json(directory / "corpus.json", manifest)


def stage(
    text: str, staging: Path, options: Any, max_rejected: float, keys_only: bool = False
) -> tuple[pa.Table, list[dict[str, str]], dict[str, dict[str, Any]], list[job.Worked]]:
    """The first pass, and what it shows: the keys in order, what was rejected, the corpus' features; and the work.

    text: the source, as it is given to `--source`.
    """
    name, source, argument = open_source(text)
    kind, parts = source.kind(argument), source.parts(argument)
    save_parts(staging, parts)
    with live(Stage("read", "parts", len(parts), lambda: job.count_files(staging, ".notes.json"))):
        worked = job.run(
            options,
            lambda pipeline: (
                pipeline
                | "Count parts" >> beam.Create([len(parts)])
                | "List parts" >> beam.FlatMap(lambda count: range(count))
                | "Spread" >> beam.Reshuffle()
                | "Stage" >> beam.ParDo(StagePart(name, kind, staging, keys_only))
            ),
        )
    notes = [json.loads((staging / f"part-{n:05d}.notes.json").read_text()) for n in range(len(parts))]
    keys, rejected = order_keys(staging, notes)
    shape: list[int | None] = []
    if len(keys):
        shape, keys, misshapen = common_shape(keys, kind)
        rejected += misshapen
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected)
    refused = staging / "rejected.jsonl"
    storage.write_atomically(refused, lambda path: path.write_text(lines, encoding="utf-8"))
    if not len(keys):
        raise InputError(f"{text} holds no example; {len(rejected)} were rejected: {rejected[:3]}")
    share = len(rejected) / (len(rejected) + len(keys))
    if share > max_rejected:
        raise InputError(
            f"{text}: {len(rejected)} examples of {len(rejected) + len(keys)} are rejected, {share:.1%}, "
            f"--max_rejected is {max_rejected:.1%}. The first: {rejected[0]}; all are in "
            f"{refused}. Mend the source, or raise --max_rejected."
        )
    features = {kind: {"kind": kind, "shape": shape, "dtype": DTYPES[kind]}, **extra_features(notes)}
    return keys, rejected, features, worked


def ingest(arguments: argparse.Namespace, options: Any) -> tuple[dict[str, Any], list[job.Worked]]:
    """Makes the corpus, its manifest last. Returns the manifest, and what the workers did."""
    # While there is a staging directory, a corpus without a manifest is a half one of ours.
    run_dir = arguments.run_dir.absolute()
    new, staging = run_dir / "corpus", staging_of(run_dir)
    if staging.exists():
        storage.remove(new)
        storage.remove(staging)
    records.write_json(staging / "source.json", {"source": arguments.source})
    stamp = source_stamp(arguments.source)
    keys, rejected, features, read = stage(arguments.source, staging, options, arguments.max_rejected)
    split, by = assign_splits(keys, arguments.validation_share, arguments.eval_share, arguments.seed)
    described = {s: describe_split(keys.filter(pa.array(split == n))) for n, s in enumerate(records.SPLITS)}
    manifest: dict[str, Any] = {
        "format": records.CORPUS_FORMAT,
        "source": arguments.source,
        "source_stamp": stamp,
        "features": features,
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
    records.write_json(staging / "manifest.json", manifest)
    shards = [(s, cut_shards(s, split_keys, staging)) for s, (split_keys, _) in described.items()]
    with live(Stage("write", "shards", sum(of for _, of in shards), lambda: job.count_files(new, ".npy"))):
        written = job.run(
            options,
            lambda pipeline: (
                pipeline
                | "Count shards" >> beam.Create(shards)
                | "List shards" >> beam.FlatMapTuple(list_shards)
                | "Spread" >> beam.Reshuffle()
                | "Write" >> beam.ParDo(WriteShard(staging, new))
                | "Gather" >> beam.combiners.ToList()
                | "Commit" >> beam.Map(lambda entries: commit(entries, staging, new))  # a URL is no Path to Beam
            ),
        )
    storage.remove(staging)
    return records.read_json(new / "corpus.json", records.CORPUS_FORMAT), [*read, *written]


def summary(manifest: dict[str, Any], run_dir: Path, worked: Sequence[job.Worked] = ()) -> str:
    name, spec = next(iter(manifest["features"].items()))
    size = " x ".join("any" if n is None else str(n) for n in spec["shape"])
    lines = [f"corpus of {manifest['source']}: {f'{name} {size}'.strip()}, split by {manifest['split_rule']['by']}"]
    for split, entry in manifest["splits"].items():
        lines.append(f"  {split:<11}{entry['rows']:>8,} rows  {len(entry['labels']):>6,} classes")
    copies = sum(entry["copies"] for entry in manifest["splits"].values())
    conflicts = sum(entry["label_conflicts"] for entry in manifest["splits"].values())
    if copies:
        lines.append(f"  {copies:,} copies of another row's payload, {conflicts:,} of them under another label")
    if manifest["rejected"]:
        lines.append(f"  {manifest['rejected']:,} rejected, with reasons in {run_dir / 'corpus' / 'rejected.jsonl'}")
    lines += job.table(worked)
    lines.append(f"  in {run_dir / 'corpus'}   next: python -m pipeline.mine --run_dir {run_dir}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = command.Parser(
        "pipeline.ingest", "--run_dir DIR --source SOURCE [options, also Apache Beam's]", "Make a corpus of a source.",
        fromfile_prefix_chars="@",
    )
    parser.add_argument("--run_dir", type=storage.location, required=True, help="where the corpus goes")
    parser.add_argument("--source", required=True, help="one of those below")
    named = [(name + (f":{s.argument}" if s.argument else ""), s.help) for name, s in SOURCES.items()]
    parser.add_argument_group("sources", "\n".join(f"{name:<29} {text}" for name, text in named))
    split = parser.add_argument_group("what is held out")
    split.add_argument("--validation_share", type=float, default=0.1, help="for choices (0.1)")
    split.add_argument("--eval_share", type=float, default=0.2, help="for reports (0.2)")
    split.add_argument("--seed", type=int, default=0, help="of the split (0)")
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
    options = job.beam_options(rest, parser.option_names())
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
        refuse_changed_source(arguments, manifest, options)
        command.note(**facts(manifest))
        print(f"already ingested; nothing to do\n{summary(manifest, arguments.run_dir)}")
        return 0
    if storage.names(there.parent) and not staging_of(arguments.run_dir).exists():
        raise InputError(f"{there.parent} holds files but no corpus.json. Remove it, or use another --run_dir.")
    manifest, worked = ingest(arguments, options)
    command.note(**facts(manifest))
    print(summary(manifest, arguments.run_dir, worked))
    return 0


def source_stamp(text: str) -> str | None:
    """A digest of the names, sizes and times of the source's files; None where they do not tell of a change."""
    _, source, argument = open_source(text)
    source.kind(argument)  # looks at the source, and says if something is wrong
    files = source.files(argument)
    if files is None:
        return None
    status = [(ascii(str(path)), path.stat()) for path in files]  # a name may be no UTF-8
    return records.sha256_of_json([[name, of.st_size, of.st_mtime_ns] for name, of in status])


def refuse_changed_source(arguments: argparse.Namespace, manifest: dict[str, Any], options: Any) -> None:
    """Raises InputError if the source holds other examples than when the corpus was made, saying which."""
    stamp = source_stamp(arguments.source)
    if stamp is not None and stamp == manifest.get("source_stamp"):
        return
    run_dir, staging = arguments.run_dir, arguments.run_dir / "corpus.check"
    storage.remove(staging)
    keys, *_ = stage(arguments.source, staging, options, 1.0, keys_only=True)
    now = dict(zip(keys["id"].to_pylist(), zip(*(keys[k].to_pylist() for k in _COMPARED), strict=True), strict=True))
    storage.remove(staging)
    changes: dict[str, list[str]] = {"came": [], "went": [], "changed": []}
    for id, value in corpus_keys(records.open_corpus(run_dir)):
        if id not in now:
            changes["went"].append(id.decode())
        elif now.pop(id) != value:
            changes["changed"].append(id.decode())
    changes["came"] = [id.decode() for id in now]
    if not any(changes.values()):
        records.write_json(run_dir / "corpus" / "corpus.json", manifest | {"source_stamp": stamp})
        return
    lines = [json.dumps({"id": id, "what": what}, ensure_ascii=False) for what, ids in changes.items() for id in ids]
    listed = run_dir / "source_changes.jsonl"
    storage.write_atomically(listed, lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    told = "; ".join(
        f"{len(ids):,} {what} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
        for what, ids in changes.items()
        if ids
    )
    raise InputError(
        f"{arguments.source} is not what {run_dir / 'corpus'} was made from: {told}. All are listed in {listed}. A run "
        f"directory keeps its corpus: ingest into a new --run_dir. What was trained goes on there: python -m "
        f"trainer.train --run_dir NEW --init --model {run_dir / 'best' / 'model.keras'}"
    )


_COMPARED = ("label", "group", "sha256")


def corpus_keys(corpus: records.Corpus) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    """(id, (label, group, SHA-256 of the payload)) of every example of a corpus."""
    name = next(iter(corpus.features))
    for split in map(corpus.split, records.SPLITS):
        for number in range(len(split.shards)):
            for record in records.read_records(split.shard_path(number)):
                example = records.parse_example(record)
                payload = example[name] if isinstance(example[name], np.ndarray) else example[name][0]
                group = example["group"][0] if "group" in example else None
                yield example["id"][0], (example["label"][0], group, _payload_sha256(payload))


def facts(manifest: dict[str, Any]) -> dict[str, Any]:
    rows = {split: entry["rows"] for split, entry in manifest["splits"].items()}
    return {"corpus_fingerprint": manifest["fingerprint"], "rows": rows, "rejected": manifest["rejected"]}


if __name__ == "__main__":
    # Imported under its own name, so that workers can unpickle what is defined here.
    from pipeline.ingest import main as imported_main

    command.run(imported_main)
