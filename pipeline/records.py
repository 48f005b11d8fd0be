"""What is on disk: TFRecord shards with their checks, the corpus, packs of triplets, manifests.

A reader trusts a manifest, never a directory listing: manifests are written last, and name every shard with
its record count and checksum. The trainer reads the same files through this module.

    python -m pipeline.records inspect FILE     a table of a TFRecord file's first records
    python -m pipeline.records verify DIR       counts and checksums against the manifests below DIR
"""

import argparse
import functools
import gc
import hashlib
import json
import mmap
import os
import struct
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from pipeline import storage
from pipeline.storage import InputError as InputError

CORPUS_FORMAT = "triplet-miner-corpus/1"
TRIPLETS_FORMAT = "triplet-miner-triplets/1"
METRIC = "squared euclidean of L2-normalised embeddings on a grid of 2^-11"
SCOPES = ("corpus", "pack")  # a triplet's scope is stored as its position here
SPLITS = ("train", "validation", "eval")
INDEX = np.dtype([("offset", "<i8"), ("length", "<i8"), ("content", "<i8"), ("group", "<i8")])
_HEADER, _FOOTER = 12, 4  # a TFRecord is length (8), its CRC (4), data, the data's CRC (4)
_importing = threading.Lock()
_FOR_EXTRAS = ("matplotlib", "sklearn")  # what Keras imports where it is there, for plots and wrappers not used here


def import_tensorflow() -> Any:
    """TensorFlow, imported without its start-up lines: some come before its own log level counts.

    See https://github.com/tensorflow/tensorflow/issues/100442. If the import fails they are shown. One thread imports:
    a worker of an engine sets up several steps at a time, and met a half imported module. Keras' imports for its extras
    would take .8 s of the import's 2.3: meanwhile it is told that they are not installed, and will say so if a process
    of ours asks for Keras' wrappers of scikit-learn or its plots.
    """
    with _importing:
        if "tensorflow" not in sys.modules:
            sys.stderr.flush()
            gc.disable()  # a million objects are made and none is garbage: a second of the import was looking for it
            real = os.dup(2)
            hidden = [name for name in _FOR_EXTRAS if name not in sys.modules]
            sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
            with tempfile.TemporaryFile() as held:
                os.dup2(held.fileno(), 2)
                try:
                    import tensorflow  # noqa: F401
                except BaseException:
                    held.seek(0)
                    os.write(real, held.read())
                    raise
                finally:
                    for name in hidden:
                        del sys.modules[name]
                    os.dup2(real, 2)
                    os.close(real)
                    gc.freeze()
                    gc.enable()
    return sys.modules["tensorflow"]


# ---- Files. ----


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    storage.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path, expected_format: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a manifest: {error}. Remove its directory and make it again.") from None
    found = value.get("format") if isinstance(value, dict) else None
    if found != expected_format:
        raise InputError(f"{path} has format {found!r}, expected {expected_format!r}. Make it again.")
    return value


def is_torn(manifest: Path, unfinished: Path) -> bool:
    """Whether a manifest was cut off as it was written: no JSON, and what goes after it is written is still there.

    On a disk, and on most object stores, that does not happen.
    """
    if not manifest.exists() or not unfinished.exists():
        return False
    try:
        json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return True
    return False


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def open_array(path: Path) -> np.ndarray:
    """A .npy file of ours, mapped: only what is looked at is read."""
    with storage.copying:
        local = storage.local_copy(path)
        return _open_array(local, local.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _open_array(path: Path, modified: int) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz file."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


# ---- TFRecords (https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details). ----


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def write_records(path: Path, records: Iterable[bytes]) -> dict[str, Any]:
    """Writes a TFRecord file atomically. Returns its entry for a manifest: file, records, bytes, sha256."""
    tf = import_tensorflow()

    def write(temporary: Path) -> tuple[int, int, str]:
        count = 0
        try:
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                for record in records:
                    writer.write(record)
                    count += 1
        except tf.errors.OpError as error:
            raise OSError(f"{path}: {error.message}") from None
        return count, temporary.stat().st_size, sha256_of_file(temporary)

    return _entry(path, *storage.write_atomically(path, write))


def write_framed(path: Path, parts: Iterable[tuple[np.ndarray, int]]) -> dict[str, Any]:
    """`write_records` for records that have their frames: parts of a TFRecord file, uint8, and the records of each."""

    def write(temporary: Path) -> tuple[int, int, str]:
        count, checksum = 0, hashlib.sha256()
        with temporary.open("wb") as file:
            for data, records in parts:
                file.write(data.data)
                checksum.update(data.data)
                count += records
            return count, file.tell(), checksum.hexdigest()

    return _entry(path, *storage.write_atomically(path, write))


def _entry(path: Path, count: int, size: int, checksum: str) -> dict[str, Any]:
    return {"file": path.name, "records": count, "bytes": size, "sha256": checksum}


def read_records(path: Path) -> Iterator[bytes]:
    """Every record of a TFRecord file, both CRCs checked.

    Raises:
      InputError: naming the file, the record's number and what is wrong with it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        number = position = 0
        while position < size:
            what = f"{path}: record {number} at byte {position}"
            header = file.read(_HEADER)
            if len(header) < _HEADER:
                raise InputError(f"{what} is cut off: {len(header)} of {_HEADER} header bytes. Make the file again.")
            length, crc = struct.unpack("<QI", header)
            if _masked_crc(header[:8]) != crc:
                raise InputError(f"{what} is corrupt: the length's checksum is wrong. Make the file again.")
            if length > size - position - _HEADER - _FOOTER:
                raise InputError(f"{what} is cut off: {length} bytes announced, the file ends before. Make it again.")
            yield _checked(file.read(length + _FOOTER), path, position)
            number, position = number + 1, position + _HEADER + length + _FOOTER


def _checked(data_and_crc: bytes, path: Path, position: int) -> bytes:
    data = data_and_crc[:-_FOOTER]
    if len(data_and_crc) < _FOOTER or int.from_bytes(data_and_crc[-_FOOTER:], "little") != _masked_crc(data):
        raise InputError(
            f"{path}: the record at byte {position} is corrupt: its data's checksum is wrong. Make it again."
        )
    return data


def read_records_at(path: Path, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """The records at these offsets (of their headers) with these data lengths, CRC checked."""
    if not path.stat().st_size:
        raise InputError(f"{path} is empty; it was to hold {len(offsets)} records. Make it again.")
    if not storage.is_local(path):
        ends = [offset + _HEADER + length + _FOOTER for offset, length in zip(offsets, lengths, strict=True)]
        parts = storage.read_ranges(path, offsets, ends)
        return [_checked(part[_HEADER:], path, offset) for part, offset in zip(parts, offsets, strict=True)]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [
            _checked(data[offset + _HEADER : offset + _HEADER + length + _FOOTER], path, offset)
            for offset, length in zip(offsets, lengths, strict=True)
        ]


def offsets_of(lengths: Sequence[int]) -> np.ndarray:
    """int64 [n]: where records of these data lengths begin in a file."""
    sizes = np.asarray(lengths, np.int64) + _HEADER + _FOOTER
    return np.cumsum(sizes) - sizes


def make_example(features: dict[str, Any]) -> bytes:
    """A serialised tf.train.Example; a feature is a list of bytes, or an integer or float array."""
    tf = import_tensorflow()

    example = tf.train.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, list):
            feature.bytes_list.value.extend(value)
        elif np.issubdtype(value.dtype, np.floating):
            feature.float_list.value.extend(value.ravel().tolist())
        else:
            feature.int64_list.value.extend(value.ravel().tolist())
    return example.SerializeToString(deterministic=True)


def parse_example(record: bytes) -> dict[str, Any]:
    """The inverse of `make_example`: lists of bytes, int64 and float32 arrays."""
    tf = import_tensorflow()

    features: dict[str, Any] = {}
    for name, feature in tf.train.Example.FromString(record).features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list":
            features[name] = list(feature.bytes_list.value)
        elif kind == "int64_list":
            features[name] = np.array(feature.int64_list.value, np.int64)
        else:
            features[name] = np.array(feature.float_list.value, np.float32)
    return features


def check_shard(directory: Path, entry: dict[str, Any], manifest: Path) -> None:
    """Compares a shard's size and SHA-256 with its manifest entry."""
    path = directory / entry["file"]
    if not path.exists():
        raise InputError(f"{path} is missing, {manifest} lists it. Restore it, or make {directory} again.")
    size, checksum = path.stat().st_size, sha256_of_file(path)
    if (size, checksum) != (entry["bytes"], entry["sha256"]):
        raise InputError(
            f"{path} is not what {manifest} lists: {size} bytes, SHA-256 {checksum[:12]}, expected "
            f"{entry['bytes']} bytes, {entry['sha256'][:12]}. Restore it, or make {directory} again."
        )


def check_corpus_shard(directory: Path, entry: dict[str, Any]) -> None:
    """`check_shard` for a corpus shard and its index."""
    check_shard(directory, entry, directory / "corpus.json")
    index = {"file": entry["index"], "bytes": entry["index_bytes"], "sha256": entry["index_sha256"]}
    check_shard(directory, index, directory / "corpus.json")


# ---- The corpus. ----


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split's rows, ordered by (label, id) in UTF-8 byte order and cut into shards.

    labels: the classes. first_rows: int64 [classes + 1], class c holds rows first_rows[c] to first_rows[c + 1].
    shard_rows: int64 [shards + 1], likewise for shards.
    """

    directory: Path
    name: str
    labels: list[str]
    first_rows: np.ndarray
    shards: list[dict[str, Any]]
    copies: int
    grouped: bool

    @property
    def rows(self) -> int:
        return int(self.first_rows[-1])

    @functools.cached_property
    def shard_rows(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([shard["records"] for shard in self.shards])]).astype(np.int64)

    def class_of(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: the class numbers of rows."""
        return np.searchsorted(self.first_rows, rows, "right") - 1

    def class_ranges(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n, 2]: the row range of each row's class."""
        number = self.class_of(rows)
        return np.stack([self.first_rows[number], self.first_rows[number + 1]], axis=1)

    def shard_path(self, number: int) -> Path:
        return self.directory / self.shards[number]["file"]

    def index(self, number: int) -> np.ndarray:
        """INDEX [rows of the shard]: where each record is, and its codes of content and group."""
        return open_array(self.directory / self.shards[number]["index"])

    def by_shard(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(shard, where in `rows`, places in the shard), ascending within each shard."""
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self.shard_rows)
        for number in np.flatnonzero(np.diff(cuts)):
            where = order[cuts[number] : cuts[number + 1]]
            yield int(number), where, rows[where] - self.shard_rows[number]

    def codes(self, name: str, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: `content`, `group`, `offset` or `length` of rows."""
        out = np.empty(len(rows), np.int64)
        for number, where, places in self.by_shard(rows):
            out[where] = self.index(number)[name][places]
        return out

    def read(self, rows: np.ndarray) -> list[bytes]:
        """The serialised Examples of rows, in the order asked for; reads go in order of position."""
        records: list[bytes] = [b""] * len(rows)
        for number, where, places in self.by_shard(rows):
            index = self.index(number)[places]
            found = read_records_at(self.shard_path(number), index["offset"].tolist(), index["length"].tolist())
            for i, record in zip(where.tolist(), found, strict=True):
                records[i] = record
        return records


def check_split(split: Split) -> None:
    """Checks every shard of a split against the manifest."""
    for entry in split.shards:
        check_corpus_shard(split.directory, entry)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """corpus.json. features: name to {kind: image, text, vector or extra, shape, dtype}; the first is the model's
    input, those of kind extra pass through from the source."""

    directory: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        return dict(self.manifest["features"])

    @property
    def packed_features(self) -> dict[str, dict[str, Any]]:
        """Those that packs carry: not the extra ones of which examples hold different numbers of values."""
        return {n: s for n, s in self.features.items() if s["kind"] != "extra" or None not in s["shape"]}

    def split(self, name: str) -> Split:
        entry = self.manifest["splits"][name]
        return Split(
            directory=self.directory,
            name=name,
            labels=entry["labels"],
            first_rows=np.array(entry["first_rows"], np.int64),
            shards=entry["shards"],
            copies=entry["copies"],
            grouped=self.manifest["grouped"],
        )


def corpus_fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 over what the corpus holds; not over where it came from, nor over its own name."""
    return sha256_of_json({name: manifest[name] for name in ("format", "features", "grouped", "splits", "split_rule")})


def open_corpus(run_dir: Path) -> Corpus:
    path = run_dir / "corpus" / "corpus.json"
    if not path.exists():
        raise InputError(f"{path} is missing. Make it: python -m pipeline.ingest --run_dir {run_dir} --source ...")
    manifest = read_json(path, CORPUS_FORMAT)
    if manifest.get("fingerprint") != corpus_fingerprint(manifest):
        raise InputError(f"{path} was changed by hand: its fingerprint does not fit. Ingest into a new --run_dir.")
    return Corpus(directory=path.parent, manifest=manifest)


# ---- Rounds. ----


def round_dir(run_dir: Path, number: int) -> Path:
    return run_dir / "rounds" / f"{number:04d}"


def checkpoint_path(run_dir: Path, number: int) -> Path:
    return round_dir(run_dir, number) / "checkpoint" / "model.keras"


def manifest_path(run_dir: Path, number: int) -> Path:
    return round_dir(run_dir, number) / "triplets" / "triplets.json"


def embeddings_dir(
    run_dir: Path,
    number: int,
    corpus_fingerprint: str,
    checkpoint_digest: str,
    class_pool: int | None = None,
    seed: int = 0,
) -> Path:
    """Named by the content of what made them, so they are never stale.

    class_pool: how many classes, drawn with the seed, are embedded; None for the whole train split.
    """
    pool = [class_pool, seed, number] if class_pool else None
    key = sha256_of_json([corpus_fingerprint, checkpoint_digest, pool])
    return round_dir(run_dir, number) / "embeddings" / key[:16]


def newest_round(run_dir: Path, path: Callable[[Path, int], Path]) -> int | None:
    """The highest round that has the file named by `checkpoint_path` or `manifest_path`."""
    numbers = [int(name) for name in storage.names(run_dir / "rounds") if name.isdigit()]
    return max((number for number in numbers if path(run_dir, number).exists()), default=None)


def checkpoint_digest(model: Any) -> str:
    """SHA-256 over a Keras model's config, its vocabularies, and each variable's path, dtype, shape and bytes.

    Not over the .keras file, which carries its date of saving, nor over the state of random generators, which
    Keras draws anew when it loads a layer such as Dropout.
    """
    digest = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    for layer in model._flatten_layers(include_self=False):
        if hasattr(layer, "get_vocabulary"):  # no variable; in the config only if it was given there
            kept: dict[str, Any] = {}
            layer.save_own_variables(kept)  # inverse document frequencies
            digest.update(json.dumps([layer.get_vocabulary(), kept], default=str).encode())
    for variable in model.weights:
        value = np.ascontiguousarray(variable.numpy())
        digest.update(f"{variable.path} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def load_checkpoint(path: Path) -> Any:
    """Loads a .keras file, with Keras' safe mode on: no code from the file runs."""
    import_tensorflow()
    import keras

    if not path.exists():
        raise InputError(f"{path} is missing. Make a first checkpoint: python -m trainer.train --run_dir ... --init")
    local = storage.local_copy(path)
    if not zipfile.is_zipfile(local):
        size = path.stat().st_size
        raise InputError(f"{path} is not a Keras model: {size:,} bytes, no zip archive. Put the .keras file back.")
    try:
        return keras.saving.load_model(local, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise InputError(f"{path} is not a Keras model that can be loaded: {str(error)[:500]}") from None


def open_triplets(run_dir: Path, number: int, corpus: Corpus) -> dict[str, Any]:
    """The manifest of a mined round, every shard checked against it and it against the corpus."""
    path = manifest_path(run_dir, number)
    manifest = read_triplets_manifest(path, corpus)
    for entry in manifest["shards"]:
        check_shard(path.parent, entry, path)
    return manifest


def read_triplets_manifest(path: Path, corpus: Corpus) -> dict[str, Any]:
    """A triplets.json, checked against the corpus; its shards are not looked at."""
    manifest = read_json(path, TRIPLETS_FORMAT)
    for name, found, expected in (
        ("corpus", manifest["corpus_fingerprint"], corpus.fingerprint),
        ("metric", manifest["metric"], METRIC),
    ):
        if found != expected:
            raise InputError(
                f"{path} was mined with {name} {found[:60]}, this run directory has {expected[:60]}. "
                f"Remove {path.parent} and mine that round again."
            )
    return manifest


def read_packs(run_dir: Path | str, number: int = 0) -> Iterator[dict[str, Any]]:
    """Every pack of a mined round, in order of its shards.

    A pack is a dict. row int64 [U], id, label and each payload: of its rows, bytes in lists of U. anchor, positive,
    negative int64 [T]: positions among them; d_ap, d_an float32 [T]; kind, scope int64 [T].
    """
    if isinstance(run_dir, str):
        run_dir = storage.location(run_dir)
    manifest = open_triplets(run_dir, number, open_corpus(run_dir))
    for shard in manifest["shards"]:
        yield from map(parse_example, read_records(manifest_path(run_dir, number).parent / shard["file"]))


# ---- Commands. ----


def inspect(path: Path, limit: int) -> None:
    """Prints the first records of a TFRecord file as a table: each feature's kind, length and first values."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def shown(value: Any) -> str:
        if isinstance(value, list):
            text = ", ".join(_as_text(item) for item in value[:4])
        else:
            text = ", ".join(f"{item:.4g}" if value.dtype == np.float32 else str(item) for item in value[:8])
        return text + (", ..." if len(value) > (4 if isinstance(value, list) else 8) else "")

    table = Table("record", "feature", "type", "values", "first", title=str(path), title_justify="left")
    count = 0
    for record in read_records(path):
        if count < limit:
            try:
                features = parse_example(record)
            except Exception as error:  # protobuf raises its own DecodeError, whose class differs by backend
                raise InputError(f"{path}: record {count} is not a tf.train.Example: {error}") from None
            for name in sorted(features):
                value = features[name]
                kind = "bytes" if isinstance(value, list) else str(value.dtype)
                table.add_row(str(count), name, kind, str(len(value)), Text(shown(value)))
            table.add_section()
        count += 1
    console = Console()
    console.print(table)
    console.print(f"{count} records, every checksum right; shown: {min(limit, count)}")


def _as_text(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"<{len(value)} bytes>"
    return text if len(text) <= 40 and text.isprintable() else f"<{len(value)} bytes>"


def verify(directory: Path) -> int:
    """Checks every manifest below a directory: its shards' checksums, CRCs and record counts. Returns problems."""
    manifests = sorted([*directory.glob("**/corpus.json"), *directory.glob("**/triplets.json")], key=str)
    if not manifests:
        raise InputError(f"no corpus.json or triplets.json below {directory}. Name a run directory, or a part of one.")
    problems = 0
    for path in manifests:
        is_corpus = path.name == "corpus.json"
        manifest = read_json(path, CORPUS_FORMAT if is_corpus else TRIPLETS_FORMAT)
        shards = manifest["shards"] if not is_corpus else [s for n in SPLITS for s in manifest["splits"][n]["shards"]]
        records = 0
        for entry in shards:
            try:
                (check_corpus_shard(path.parent, entry) if is_corpus else check_shard(path.parent, entry, path))
                found = sum(1 for _ in read_records(path.parent / entry["file"]))
                if found != entry["records"]:
                    raise InputError(f"{path.parent / entry['file']} has {found} records, {path} {entry['records']}.")
                records += found
            except InputError as error:
                print(f"BAD  {error}")
                problems += 1
        listed = {entry["file"] for entry in shards}
        for extra in sorted(set(storage.names(path.parent)) - listed):
            if extra.startswith(".") or not extra.endswith(".tfrecord"):
                continue
            print(f"BAD  {path.parent / extra} is not listed in {path}. Readers leave it alone; remove it.")
            problems += 1
        print(f"{path}: {len(shards)} shards, {records} records checked")
    print("everything as listed" if not problems else f"{problems} problems")
    return problems


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.records", description="Look at what is on disk.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("inspect", help="a table of a TFRecord file's first records")
    one.add_argument("file", type=storage.location)
    one.add_argument("--limit", type=int, default=3, help="records to show (3)")
    two = commands.add_parser("verify", help="counts and checksums against the manifests below a directory")
    two.add_argument("directory", type=storage.location)
    arguments = parser.parse_args(argv)
    if arguments.command == "inspect":
        if not arguments.file.is_file():
            raise InputError(f"{arguments.file} is not a file. Name a .tfrecord file.")
        inspect(arguments.file, arguments.limit)
        return 0
    return 4 if verify(arguments.directory) else 0


if __name__ == "__main__":
    # Imported under their own names: this file as a program has an InputError of its own.
    from pipeline.command import run
    from pipeline.records import main as imported_main

    run(imported_main)
