"""A corpus on disk: rows by number, read by position.

Rows of a split are ordered by (label, id) in UTF-8 byte order and cut into shards, so that a class is a range of rows.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from pipeline.files import manifests, tfrecords
from pipeline.files.errors import InputError
from pipeline.files.layout import Run
from pipeline.files.manifests import Shard, check_file, check_name, sha256_of_json
from pipeline.files.storage import open_array

SPLITS = ("train", "validation", "eval")
INDEX = np.dtype([("offset", "<i8"), ("length", "<i8"), ("content", "<i8"), ("group", "<i8")])


@dataclass(frozen=True, kw_only=True)
class Feature:
    """The payload. kind: image, text or vector, which is the feature's name in an Example too.

    shape: (height, width, channels) with None for sizes that differ, () of a text, (dim,). dtype: of what is stored,
    decoded: uint8, string or float32.
    """

    kind: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class CorpusShard(Shard):
    """A shard, and its index: INDEX [records]."""

    index: str
    index_bytes: int
    index_sha256: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.index)


@dataclass(frozen=True, kw_only=True)
class SplitManifest:
    """labels: the classes. first_rows: classes + 1 numbers, class c holds rows first_rows[c] to first_rows[c + 1] - 1.

    copies: rows whose payload an earlier row has; label_conflicts: those under another label than that row.
    """

    rows: int
    labels: list[str]
    first_rows: list[int]
    copies: int
    label_conflicts: int
    shards: list[CorpusShard]


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """by: `class` (held-out classes are unseen) or `example`."""

    by: str
    seed: int
    validation_share: float
    eval_share: float


@dataclass(frozen=True, kw_only=True)
class CorpusManifest:
    """corpus.json. source_stamp: of the source's files, see `pipeline.ingest`; rejected: how many examples were."""

    FORMAT: ClassVar[str] = "triplet-miner-corpus/1"
    source: str
    source_stamp: str | None
    features: dict[str, Feature]
    grouped: bool
    split_rule: SplitRule
    rejected: int
    splits: dict[str, SplitManifest]
    fingerprint: str = ""

    def computed_fingerprint(self) -> str:
        """SHA-256 over what the corpus holds; not over where it came from, nor over its own name."""
        told = msgspec.to_builtins(self)
        held = {name: told[name] for name in ("features", "grouped", "splits", "split_rule")}
        return sha256_of_json({"format": self.FORMAT, **held})


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split's rows.

    first_rows: int64 [classes + 1], class c holds rows first_rows[c] to first_rows[c + 1] - 1.
    """

    directory: Path
    name: str
    labels: list[str]
    first_rows: np.ndarray
    shards: list[CorpusShard]
    copies: int
    grouped: bool

    @property
    def rows(self) -> int:
        return int(self.first_rows[-1])

    @functools.cached_property
    def shard_rows(self) -> np.ndarray:
        """int64 [shards + 1]: where each shard's rows begin."""
        return np.concatenate([[0], np.cumsum([shard.records for shard in self.shards])]).astype(np.int64)

    def class_of(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: the class numbers of rows."""
        return np.searchsorted(self.first_rows, rows, "right") - 1

    def class_ranges(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n, 2]: the row range of each row's class."""
        number = self.class_of(rows)
        return np.stack([self.first_rows[number], self.first_rows[number + 1]], axis=1)

    def shard_path(self, number: int) -> Path:
        return self.directory / self.shards[number].file

    def index(self, number: int) -> np.ndarray:
        """INDEX [rows of the shard]: where each record is, and its codes of content and group."""
        return open_array(self.directory / self.shards[number].index)

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
            offsets, lengths = index["offset"].tolist(), index["length"].tolist()
            found = tfrecords.read_records_at(self.shard_path(number), offsets, lengths)
            for i, record in zip(where.tolist(), found, strict=True):
                records[i] = record
        return records

    def examples(self, rows: np.ndarray) -> Iterator[dict[str, Any]]:
        """The same, parsed."""
        return map(tfrecords.parse_example, self.read(rows))

    def check_shard(self, number: int) -> None:
        """Compares a shard and its index with the manifest."""
        manifest, shard = self.directory / "corpus.json", self.shards[number]
        manifests.check_shard(manifest, shard)
        check_file(self.directory / shard.index, shard.index_bytes, shard.index_sha256, manifest)

    def check(self) -> None:
        for number in range(len(self.shards)):
            self.check_shard(number)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The corpus of a run directory."""

    directory: Path
    manifest: CorpusManifest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def feature(self) -> Feature:
        """The payload."""
        return next(iter(self.manifest.features.values()))

    def split(self, name: str) -> Split:
        found = self.manifest.splits[name]
        return Split(
            directory=self.directory, name=name, labels=found.labels, first_rows=np.array(found.first_rows, np.int64),
            shards=found.shards, copies=found.copies, grouped=self.manifest.grouped,
        )  # fmt: skip


def open_corpus(run_dir: Path) -> Corpus:
    path = Run(run_dir).corpus_manifest
    if not path.exists():
        raise InputError(f"{path} is missing. Make it: python -m pipeline.ingest --run_dir {run_dir} --source ...")
    manifest = manifests.read(path, CorpusManifest)
    if manifest.fingerprint != manifest.computed_fingerprint():
        raise InputError(f"{path} was changed by hand: its fingerprint does not fit. Ingest into a new --run_dir.")
    return Corpus(directory=path.parent, manifest=manifest)
