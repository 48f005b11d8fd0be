"""A corpus on disk: rows by number, read by position.

Rows of a split are ordered by (label, id) in UTF-8 byte order and cut into shards, so that a class is a range of rows.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.corpus.manifest import INDEX, CorpusManifest, CorpusShard, Feature, SplitManifest, read_corpus_manifest
from pipeline.corpus.options import IngestOptions
from pipeline.errors import InputError
from pipeline.files import manifests, tfrecords
from pipeline.files.layout import Run
from pipeline.files.manifests import check_file
from pipeline.files.storage import location, open_array
from pipeline.process import lock

AGAIN = "Ingest into a new --run_dir."


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split's rows. Its files are opened when they are needed."""

    directory: Path
    name: str
    manifest: SplitManifest
    grouped: bool

    @property
    def rows(self) -> int:
        return self.manifest.rows

    @property
    def classes(self) -> int:
        return self.manifest.labels.records

    @property
    def copies(self) -> int:
        return self.manifest.copies

    @property
    def shards(self) -> list[CorpusShard]:
        return self.manifest.shards

    @functools.cached_property
    def labels(self) -> list[str]:
        """The name of each class.

        Raises:
          InputError: if the file is not what the manifest lists.
        """
        entry, path = self.manifest.labels, self.directory / self.manifest.labels.file
        manifests.check_shard(self.directory / "corpus.json", entry)
        found: list[str] = msgspec.json.Decoder(str).decode_lines(path.read_bytes())
        if len(found) != entry.records:
            raise InputError(f"{path} holds {len(found)} labels, expected {entry.records}. {AGAIN}")
        return found

    @functools.cached_property
    def first_rows(self) -> np.ndarray:
        """int64 [classes + 1]: class c holds rows first_rows[c] to first_rows[c + 1] - 1.

        Raises:
          InputError: if the file is not what the manifest lists, or if these are no ranges of the rows.
        """
        path = self.directory / self.manifest.first_rows.file
        manifests.check_shard(self.directory / "corpus.json", self.manifest.first_rows)
        first = np.asarray(open_array(path))
        fits = first.dtype == np.int64 and first.shape == (self.classes + 1,) and first[0] == 0
        if not fits or first[-1] != self.rows or (np.diff(first) < 0).any():
            raise InputError(f"{path} does not cut {self.rows} rows into {self.classes} classes. {AGAIN}")
        return first

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
        """INDEX [rows of the shard]: where each record is, and its codes of content and group.

        Raises:
          InputError: if it is not what the manifest lists.
        """
        if number not in self._checked_indexes:
            self._check_index(number)
        return open_array(self.directory / self.shards[number].index)

    @functools.cached_property
    def _checked_indexes(self) -> set[int]:
        return set()

    def _check_index(self, number: int) -> None:
        shard, manifest = self.shards[number], self.directory / "corpus.json"
        path = self.directory / shard.index
        check_file(path, shard.index_bytes, shard.index_sha256, manifest)
        index = open_array(path)
        if index.dtype != INDEX or index.shape != (shard.records,):
            raise InputError(
                f"{path} holds {index.dtype} {list(index.shape)}, {manifest} lists {shard.records} records. {AGAIN}"
            )
        self._checked_indexes.add(number)

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

    def part(self, numbers: np.ndarray, shard_rows: np.ndarray) -> "Part":
        """Some of the rows. numbers: int64 [n], ascending. shard_rows: see `Part`."""
        given = {field.name: getattr(self, field.name) for field in fields(Split)}
        return Part(**given, whole=self, numbers=numbers, shard_rows=shard_rows)

    def number_of(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: what rows are called in the corpus."""
        return rows

    def row_of(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [n]: the other way round."""
        return numbers

    def check_shard(self, number: int) -> None:
        """Compares a shard and its index with the manifest."""
        manifests.check_shard(self.directory / "corpus.json", self.shards[number])
        self._check_index(number)

    def check(self) -> None:
        """Compares all files of the split with the manifest."""
        self.labels, self.first_rows  # noqa: B018  opening them compares them
        for number in range(len(self.shards)):
            self.check_shard(number)


@dataclass(frozen=True, kw_only=True)
class Part(Split):
    """Some rows of a split as a split of its own: its rows, and the classes that have any, are numbered anew. What is
    read lies in the files of `whole`.

    numbers: int64 [rows], ascending, of its rows in `whole`. shard_rows: int64 [n], where runs of rows to work on at a
    time begin, and the end.
    """

    whole: Split
    numbers: np.ndarray
    shard_rows: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.numbers)

    @property
    def classes(self) -> int:
        return len(self._kept)

    @functools.cached_property
    def _kept(self) -> np.ndarray:
        """int64: the numbers of its classes in `whole`."""
        return np.unique(self.whole.class_of(self.numbers))

    @functools.cached_property
    def labels(self) -> list[str]:
        return [self.whole.labels[number] for number in self._kept]

    @functools.cached_property
    def first_rows(self) -> np.ndarray:
        return np.append(np.searchsorted(self.numbers, self.whole.first_rows[self._kept]), self.rows)

    def codes(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self.whole.codes(name, self.numbers[rows])

    def read(self, rows: np.ndarray) -> list[bytes]:
        return self.whole.read(self.numbers[rows])

    def number_of(self, rows: np.ndarray) -> np.ndarray:
        return self.numbers[rows]

    def row_of(self, numbers: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.numbers, numbers)

    def check_shard(self, number: int) -> None:
        """Nothing beforehand: what is read is checked, record by record, and so is each index."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The corpus of a run directory.

    >>> corpus = Corpus.ingest("digits", "runs/digits")        # doctest: +SKIP
    >>> corpus.split("train").rows                             # doctest: +SKIP
    1258
    """

    run_dir: Path
    manifest: CorpusManifest

    @classmethod
    def open(cls, run_dir: Path | str) -> "Corpus":
        """The corpus that is there.

        Raises:
          InputError: if there is none, or if corpus.json is damaged.
        """
        run_dir = location(run_dir)
        return cls(run_dir=run_dir, manifest=read_corpus_manifest(run_dir))

    @classmethod
    def ingest(
        cls, source: str | Sequence[str], run_dir: Path | str, *, beam_options: Any = None, **options: Any
    ) -> "Corpus":
        """Copies a source into a run directory, as `python -m pipeline.ingest` does, unless that holds it already.

        Args:
          source: `NAME:ARGUMENT`, see docs/sources.md: `images:photos`, `csv:rows.csv,text=body,label=topic`; or some.
          beam_options: PipelineOptions; None runs in this process.
          options: fields of `pipeline.corpus.options.IngestOptions`: eval_source, validation_share, max_text, ...
        Raises:
          InputError: if the source cannot be read, if too much of it is rejected, or if the run directory holds
            another corpus.
        """
        from pipeline.corpus.ingest import ingest  # with Beam, which reading a corpus does without
        from pipeline.process.beam import in_process

        given = {"source": source, **options}
        for name in ("source", "validation_source", "eval_source"):
            if isinstance(given.get(name), str):
                given[name] = (given[name],)
        with lock.hold(location(run_dir), lock.MINER):
            ingest(location(run_dir), IngestOptions(**given), beam_options or in_process())
        return cls.open(run_dir)

    @property
    def directory(self) -> Path:
        return Run(self.run_dir).corpus

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def feature(self) -> Feature:
        """The payload."""
        return next(iter(self.manifest.features.values()))

    def split(self, name: str) -> Split:
        """`train`, `validation` or `eval`.

        Raises:
          InputError: for another name.
        """
        if name not in self.manifest.splits:
            raise InputError(f"there is no split {name!r}; there are {', '.join(self.manifest.splits)}")
        found = self.manifest.splits[name]
        return Split(directory=self.directory, name=name, manifest=found, grouped=self.manifest.grouped)

    def known_classes(self, split: str) -> int:
        """How many classes of a split the train split has too."""
        return len(set(self.split(split).labels) & set(self.split("train").labels))

    def given_triplets(self) -> np.ndarray:
        """int64 [g, 3], ascending: rows of train, the anchors, positives and negatives that the source gave together.

        Raises:
          InputError: if their file is not what corpus.json lists.
        """
        shard, rows = self.manifest.given_triplets, self.split("train").rows
        if shard is None:
            return np.empty((0, 3), np.int64)
        manifests.check_shard(Run(self.run_dir).corpus_manifest, shard)
        found = open_array(self.directory / shard.file)
        right = found.dtype == np.int64 and found.shape == (shard.records, 3) and shard.records > 0
        if not right or not (0 <= found.min() and found.max() < rows):
            raise InputError(
                f"{self.directory / shard.file} holds {found.dtype} {list(found.shape)}, expected {shard.records} "
                f"triplets of rows below {rows}. {AGAIN}"
            )
        return found

    def rows(self, split: str = "train") -> Iterator[dict[str, Any]]:
        """Every row of a split, in order: what `mine_corpus(embeddings=...)` wants the vectors of.

        Returns:
          dicts. id, label, and group where it has one: str. The payload by its kind: text, a str; image, the encoded
          bytes; vector, float32 [dim].
        """
        found = self.split(split)
        for number in range(len(found.shards)):
            found.check_shard(number)
            for example in map(tfrecords.parse_example, tfrecords.read_records(found.shard_path(number))):
                row = {name: value if name == "vector" else value[0] for name, value in example.items()}
                yield {name: value if name in ("image", "vector") else value.decode() for name, value in row.items()}
