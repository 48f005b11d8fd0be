"""corpus.json: what a corpus holds, and what it was made from."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np

from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.files.manifests import Shard, check_name, sha256_of_json

SPLITS = ("train", "validation", "eval")
DTYPES = {"image": "uint8", "text": "string", "vector": "float32"}  # of what is stored, decoded, by a payload's kind
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
    """labels: a file, the classes' names, a JSON string a line. first_rows: a file, int64 [classes + 1]: class c holds
    rows first_rows[c] to first_rows[c + 1] - 1.

    copies: rows whose payload an earlier row has; label_conflicts: those under another label than that row.
    """

    rows: int
    labels: Shard
    first_rows: Shard
    copies: int
    label_conflicts: int
    shards: list[CorpusShard]

    def misfits(self) -> Iterator[str]:
        """What does not fit together."""
        records = [shard.records for shard in self.shards]
        if self.first_rows.records != self.labels.records + 1:
            yield f"its first_rows are {self.first_rows.records}, it has {self.labels.records} labels"
        if min(records, default=0) < 0 or sum(records) != self.rows:
            yield f"its shards hold {sum(records)} records, expected {self.rows}"


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How rows were drawn that no source put into a split. by: `class` (held-out classes are unseen) or `example`."""

    by: str
    seed: int
    validation_share: float
    eval_share: float


@dataclass(frozen=True, kw_only=True)
class CorpusManifest:
    """corpus.json.

    source_stamp: of the source's files, see `Source.stamp`. given: splits that a source put rows into. leaks: by
    held-out split, rows with a copy, or a row of their group, in train. roles: whether rows are queries and gallery.
    rejected: how many examples were. alike: labels that differ in case, spaces or form only. bits: of images of 16 bits
    a pixel, how many the brightest of all uses; None where there are none. given_negatives: rows of any split that are
    negatives of a pair. given_triplets: the file of the triplets that these make in train, int64 [records, 3], rows of
    anchor, positive, negative; None for none.
    """

    FORMAT: ClassVar[str] = "triplet-miner-corpus/2"
    source: str
    source_stamp: str | None
    features: dict[str, Feature]
    grouped: bool
    split_rule: SplitRule
    rejected: int
    splits: dict[str, SplitManifest]
    bits: int | None = None
    fingerprint: str = ""
    given: list[str] = field(default_factory=list)
    leaks: dict[str, int] = field(default_factory=dict)
    alike: list[list[str]] = field(default_factory=list)
    roles: bool = False
    given_negatives: int = 0
    given_triplets: Shard | None = None

    def misfits(self) -> Iterator[str]:
        """What does not fit together."""
        if set(self.splits) != set(SPLITS):
            yield f"its splits are {', '.join(self.splits)}, expected {', '.join(SPLITS)}"
        kinds = [feature.kind for feature in self.features.values()]
        if len(kinds) != 1 or kinds != list(self.features) or kinds[0] not in DTYPES:
            yield f"its features are {', '.join(self.features)}, expected one of {', '.join(DTYPES)}"
        for name, split in self.splits.items():
            yield from (f"{name}: {misfit}" for misfit in split.misfits())

    @property
    def held_out(self) -> str:
        """`split by class`; `eval as given, validation by example`."""
        if not self.given:
            return f"split by {self.split_rule.by}"
        drawn = [name for name in SPLITS[1:] if name not in self.given and self.splits[name].rows]
        return f"{' and '.join(self.given)} as given" + "".join(f", {name} by {self.split_rule.by}" for name in drawn)

    def arrays(self) -> list[Shard]:
        """The files that are no shards."""
        of_splits = [entry for split in self.splits.values() for entry in (split.labels, split.first_rows)]
        return [*of_splits, *([self.given_triplets] if self.given_triplets else [])]

    def computed_fingerprint(self) -> str:
        """SHA-256 over what the corpus holds; not over where it came from, nor over its own name."""
        told = msgspec.to_builtins(self)
        held = {name: told[name] for name in ("features", "grouped", "splits", "split_rule")}
        if self.given_triplets:  # corpora without any keep the fingerprint that they always had
            held["given_triplets"] = told["given_triplets"]
        return sha256_of_json({"format": self.FORMAT, **held})


def read_corpus_manifest(run_dir: Path) -> CorpusManifest:
    path = Run(run_dir).corpus_manifest
    if not path.exists():
        raise InputError(f"{path} is missing. Make it: python -m pipeline.ingest --run_dir {run_dir} --source ...")
    again = "Ingest again, into a new --run_dir."
    manifest = manifests.read(path, CorpusManifest, again=again)
    if manifest.fingerprint != manifest.computed_fingerprint():
        raise InputError(f"{path} was changed by hand: its fingerprint does not fit. Ingest into a new --run_dir.")
    for misfit in manifest.misfits():
        raise InputError(f"{path}: {misfit}. Ingest into a new --run_dir.")
    return manifest
