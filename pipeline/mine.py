"""Mine a round: embed the corpus with its checkpoint, select triplets exactly, write them as TFRecords.

    python -m pipeline.mine --run_dir runs/digits

The graph is `graph` below. Embeddings and references travel through its shuffles, payload does not.
"""

import argparse
import collections
import functools
import itertools
import json
import os
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils import shared
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from pipeline import command, examples, job, packs, records, selection, spread, storage
from pipeline.embed import Embedder, divide_cores
from pipeline.examples import Column, Strings
from pipeline.pool import Pool
from pipeline.progress import Stage, live
from pipeline.records import Corpus, InputError
from pipeline.selection import ANCHOR_BLOCK, Block, Found, Pairs, Rule, Triplets

ITEM_BLOCKS = 8  # anchor blocks of a work item
ITEM_COLUMNS = 64  # column blocks of a work item, for `nearest`
GROUP_ROWS = 1 << 16  # rows whose groups are looked for at a time, in whole classes
SHARD_PAIRS = (4096, 26_000)  # anchor-positive pairs of a triplet shard: in small rounds, and in the largest
CACHE_BYTES = 256 << 20  # column blocks kept per process, and as much of payload
SCOPE_KINDS = [f"{scope}/{kind}" for scope in records.SCOPES for kind in selection.KINDS]
PACK_COUNTS = ("packs", "rows", "pack_skipped", "pack_guarded", *SCOPE_KINDS)  # of a triplet shard
PAYLOAD_BYTES = 64 << 20  # payload held at a time while shards are written, if their packs are not larger
COLLAPSED, COLLAPSE_ROWS = 0.99, 4096  # a mean of so many embeddings that is as long: they lie together
FILL = 4  # rows of a class in a pack, unless told otherwise
PACKS = ("triplets", "spread")
SLICE_ROWS = 2048  # of packs that a thread fills and serialises at a time: only speed

_loaded: dict[str, Any] = {}  # the checkpoint's model by its digest, where the launcher's process embeds too


@dataclass(frozen=True, kw_only=True)
class Job:
    """One round's mining: everything a worker needs to know, small enough to be sent to it."""

    run_dir: Path
    round: int
    rule: Rule
    pack_rows: int = 128
    fill: int = FILL  # rows that each class in a pack is filled to
    packs: str = "triplets"  # what packs begin with; or `spread`: see there
    pack_pick: str | None = None  # the rule's pick for triplets inside the packs; None: as over the corpus
    anchors: int | None = None  # that many anchors; None: every row
    class_pool: int | None = None  # this round sees that many classes; None: all
    threads: int | None = None  # of a worker; None: as many as its machine has cores
    corpus_fingerprint: str = ""
    checkpoint_digest: str = ""

    def __post_init__(self) -> None:
        packs.check(self.pack_rows, self.fill)
        if self.packs not in PACKS:
            raise ValueError(f"packs must be {' or '.join(PACKS)}; found {self.packs!r}")
        for name in ("anchors", "class_pool", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; found {getattr(self, name)}")

    @property
    def directory(self) -> Path:
        return records.round_dir(self.run_dir, self.round)

    def worker_threads(self) -> int:
        """In a worker: how many it is to use."""
        return self.threads or os.cpu_count() or 1

    @property
    def embeddings(self) -> Path:
        return records.embeddings_dir(
            self.run_dir, self.round, self.corpus_fingerprint, self.checkpoint_digest, self.class_pool, self.rule.seed
        )

    def open_pool(self) -> Pool:
        return Pool(self.run_dir, self.round, self.checkpoint_digest, self.class_pool, self.rule.seed)

    @property
    def work(self) -> Path:
        """Intermediate results, named by everything that shapes them; removed when the round is mined."""
        return self.directory / "work" / records.sha256_of_json([self.options(), str(self.embeddings)])[:16]

    @property
    def pack_rule(self) -> Rule:
        """Of triplets inside the packs."""
        return replace(self.rule, pick=self.pack_pick or self.rule.pick)

    def options(self) -> dict[str, Any]:
        """What shapes the result, as the manifest has it."""
        rule = asdict(self.rule)
        del rule["round"]
        rule |= {"shares": dict(self.rule.shares), "pack_pick": self.pack_rule.pick}
        return rule | {name: getattr(self, name) for name in ("packs", "pack_rows", "fill", "anchors", "class_pool")}


@dataclass(frozen=True, kw_only=True)
class Item:
    """A work item: ITEM_BLOCKS anchor blocks, the number-th, against column blocks first_column to last_column - 1."""

    number: int
    first_column: int
    last_column: int


class Columns:
    """Column blocks by number, read from files and kept while they fit in CACHE_BYTES. Safe between threads."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._kept: collections.OrderedDict[int, Block] = collections.OrderedDict()  # the least used first
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, number: int) -> Block:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        block = Block(**records.read_arrays(self.directory / f"{number:06d}.npz"))
        with self._lock:
            if number not in self._kept:
                self._kept[number] = block
                self._bytes += block.embedding.nbytes
            while self._bytes > CACHE_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].embedding.nbytes
        return block


def save_arrays(path: Path, **arrays: np.ndarray | None) -> None:
    there: dict[str, Any] = {name: array for name, array in arrays.items() if array is not None}
    storage.write_atomically(path, lambda temporary: np.savez(temporary, **there))


# ---- The steps. ----


class _Step(beam.DoFn):
    """A step that knows the job, and opens the pool once per worker."""

    def __init__(self, job_: Job):
        self.job = job_

    def setup(self) -> None:
        self.pool = self.job.open_pool()


class _SideBySide(_Step):
    """A step that works on some elements of a bundle at once: what one leaves of the cores, waiting for a disk or at
    its end, another takes."""

    stage: str  # what `job.count` counts, and in which unit
    unit: str
    at_once = 2

    def work(self, element: Any) -> tuple[Any, int]:
        """In a thread: an element's output, and how many units of work it was."""
        raise NotImplementedError

    def start_bundle(self) -> None:
        self.started, self.done = 0.0, 0
        self.threads = ThreadPoolExecutor(self.at_once)
        self.under_way: collections.deque[Future[tuple[Any, int]]] = collections.deque()

    def process(self, element: Any) -> Iterator[Any]:
        self.started = self.started or time.monotonic()
        try:
            self.under_way.append(self.threads.submit(self.work, element))
            while len(self.under_way) >= self.at_once:
                yield self.first()
        except BaseException:  # the bundle is not finished then; its elements must not be worked on beside a next try
            self.stop()
            raise

    def finish_bundle(self) -> Iterator[WindowedValue]:
        try:
            while self.under_way:
                yield WindowedValue(self.first(), MIN_TIMESTAMP, (GlobalWindow(),))
        finally:
            self.stop()
        if self.done:
            job.count(self.stage, self.unit, self.done, self.started)

    def first(self) -> Any:
        """Waits for the element that began first."""
        output, units = self.under_way.popleft().result()
        self.done += units
        return output

    def stop(self) -> None:
        """Waits for what is under way, leaves out what has not begun."""
        self.threads.shutdown(cancel_futures=True)


class EmbedShard(_SideBySide):
    """corpus shard number -> the same number, its embeddings written."""

    stage, unit = "embed", "rows"

    def __init__(self, job_: Job):
        super().__init__(job_)
        self.handle = shared.Shared()

    def work(self, number: int) -> tuple[int, int]:
        path, split = self.pool.embedding_path(number), self.pool.split
        records.check_corpus_shard(split.directory, split.shards[number])
        if self.pool.is_embedded(number):
            return number, 0
        embedder = self.handle.acquire(self._load, tag=self.job.checkpoint_digest)
        rows = self.pool.shard_rows(number)
        embeddings = embedder(split.read(rows), int(rows[0]) if len(rows) else 0)
        storage.write_atomically(path, lambda temporary: np.save(temporary, embeddings))
        text = records.sha256_of_file(path)
        storage.write_atomically(self.pool.checksum_path(number), lambda temporary: temporary.write_text(text))
        return number, len(rows)

    def _load(self) -> Embedder:
        checkpoint = records.checkpoint_path(self.job.run_dir, self.job.round)
        divide_cores(self.job.worker_threads())  # in a worker's process
        embedder = Embedder(checkpoint, self.pool.corpus, _loaded.pop(self.job.checkpoint_digest, None))
        digest = records.checkpoint_digest(embedder.model)
        if digest != self.job.checkpoint_digest:
            raise InputError(
                f"{checkpoint} changed while its round was mined: {digest[:12]}, at the start "
                f"{self.job.checkpoint_digest[:12]}. Mine again."
            )
        return embedder


class DealColumns(_Step):
    """corpus shard number -> (column block, part of it), its rows dealt by hash."""

    def process(self, number: int) -> Iterator[tuple[int, Block]]:
        rows = self.pool.shard_rows(number)
        if not len(rows):
            return
        whole = self.pool.block(rows)
        dealt = selection.column_block_of(self.job.rule, rows, selection.column_blocks(self.pool.rows))
        order = np.argsort(dealt, kind="stable")
        for where in np.split(order, np.flatnonzero(np.diff(dealt[order])) + 1):
            yield int(dealt[where[0]]), whole.take(where)


class WriteColumns(_Step):
    """(column block, its parts) -> its number, written in order of rows."""

    def process(self, element: tuple[int, Any]) -> Iterator[int]:
        number, parts = element
        block = Block.concatenate(list(parts))
        save_arrays(self.job.work / "columns" / f"{number:06d}.npz", **vars(block.take(np.argsort(block.row))))
        yield number


class _SelectionStep(_Step):
    def pairs(self, item: Item) -> Pairs:
        """An item's anchors with their positives drawn: the same wherever and however often it is asked for."""
        rule, pool, split = self.job.rule, self.pool, self.pool.split
        size = ITEM_BLOCKS * ANCHOR_BLOCK
        anchors = np.array(
            records.open_array(self.job.work / "anchors.npy")[item.number * size : (item.number + 1) * size]
        )
        own = split.class_ranges(anchors)
        contents = (lambda lo, hi: split.codes("content", np.arange(lo, hi))) if split.copies else None
        positive = selection.draw_positives(rule, anchors, own, contents)
        there = np.where(positive >= 0, positive, anchors[:, None])
        embedding = pool.embeddings(there.ravel()).reshape(*positive.shape, -1)
        return selection.make_pairs(rule, pool.block(anchors), own, positive, embedding)


class Scan(_SelectionStep):
    """Item -> (number of its anchors, Found): the item's anchors against its columns."""

    def setup(self) -> None:
        super().setup()
        self.columns = Columns(self.job.work / "columns")

    def process(self, item: Item, written: int) -> Iterator[tuple[int, tuple[Item, Found]]]:
        blocks = selection.column_blocks(self.pool.rows)
        if written != blocks:
            raise RuntimeError(f"{written} column blocks were written, expected {blocks}")
        path = self.job.work / "found" / f"{item.number:06d}-{item.first_column:06d}.npz"
        found = _read_found(path)
        if found is None:
            rule, pairs, threads = self.job.rule, self.pairs(item), self.job.worker_threads()
            started = time.monotonic()
            if rule.pick == "random":
                found = selection.scan_random(rule, pairs, item.number * ITEM_BLOCKS, self.columns, blocks, threads)
            else:
                numbers = range(item.first_column, item.last_column)
                found = selection.scan_nearest(rule, pairs, map(self.columns, numbers), threads)
            job.count("scan", "anchors", len(pairs.anchors.row), started)
            save_arrays(path, **vars(found))
        yield item.number, (item, found)


def _read_found(path: Path) -> Found | None:
    """What an interrupted run left, if it is whole: a zip checks its members' CRCs."""
    try:
        return Found(**records.read_arrays(path))
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        return None


class MergeFound(beam.CombineFn):
    """Merges an item's partial results, one per list of column blocks. Associative and commutative."""

    def create_accumulator(self) -> None:
        return None

    def add_input(self, one: Any, other: Any) -> Any:
        if one is None or other is None:
            return other if one is None else one
        return one[0], selection.merge(one[1], other[1])

    def merge_accumulators(self, accumulators: Any) -> Any:
        return functools.reduce(self.add_input, accumulators, None)

    def extract_output(self, accumulator: Any) -> Any:
        return accumulator


class ChooseNegatives(_SelectionStep):
    """(number, (item, Found)) -> (triplet shard, Triplets); counts go to the output COUNTS."""

    COUNTS = "counts"

    def __init__(self, job_: Job, shards: int):
        super().__init__(job_)
        self.shards = shards

    def process(self, element: tuple[int, tuple[Item, Found]]) -> Iterator[Any]:
        item, found = element[1]
        triplets, counts = selection.choose(self.job.rule, self.pairs(item), found)
        shard = packs.shard_of(self.job.rule, triplets, self.shards)
        order = np.argsort(shard, kind="stable")
        for where in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
            if len(where):
                yield int(shard[where[0]]), triplets.take(where)
        yield beam.pvalue.TaggedOutput(self.COUNTS, counts)


class Payload:
    """The features that a pack carries, by row, kept between packs while they fit in CACHE_BYTES."""

    def __init__(self, pool: Pool):
        tf = records.import_tensorflow()
        self.split = pool.split
        self.schema = {name: tf.io.FixedLenFeature([], tf.string) for name in ("id", "label")}
        if pool.split.grouped:
            self.schema["group"] = tf.io.FixedLenFeature([], tf.string, default_value="")
        dtypes = {"float32": tf.float32, "int64": tf.int64}
        for name, spec in pool.corpus.packed_features.items():
            shape = [] if spec["kind"] in ("image", "text") else spec["shape"]
            self.schema[name] = tf.io.FixedLenFeature(shape, dtypes.get(spec["dtype"], tf.string))
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        widths = {name: int(np.prod(of.shape)) if of.dtype == "string" else 1 for name, of in self.schema.items()}
        self._kept = {name: Strings(width=width) for name, width in widths.items()}  # numbers as their bytes
        self._rows, self._place = np.empty(0, np.int64), np.empty(0, np.int64)  # ascending; where each is in _kept
        self._bytes = 0

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, Strings | np.ndarray]]:
        """Where rows are in the features that are kept, and these: Strings, or arrays of numbers [m, ...].

        rows: ascending and different. Those that are not kept are read, in order of position. Safe between threads.
        """
        with self._lock:
            self._load(rows)
            place = self._place[np.searchsorted(self._rows, rows)]
            features: dict[str, Strings | np.ndarray] = {**self._kept}
            for name, of in self.schema.items():
                if of.dtype != "string":
                    numbers = self._kept[name].joined.view(of.dtype.as_numpy_dtype)
                    features[name] = numbers.reshape(len(self._kept[name]), *of.shape)
            return place, features

    def _load(self, rows: np.ndarray) -> None:
        tf = records.import_tensorflow()
        missing = np.setdiff1d(rows, self._rows, assume_unique=True)
        if not len(missing):
            return
        if self._bytes + self.split.codes("length", missing).sum() > CACHE_BYTES:
            self._forget()
            missing = rows
        examples = self.split.read(missing)
        self._bytes += sum(map(len, examples))
        parsed = tf.io.parse_example(tf.constant(examples), self.schema)
        for name, of in self.schema.items():
            column = parsed[name].numpy()
            self._kept[name].append(
                column.ravel().tolist() if of.dtype == "string" else [row.tobytes() for row in column]
            )
        place = np.append(self._place, len(self._rows) + np.arange(len(missing)))
        rows = np.append(self._rows, missing)
        order = np.argsort(rows)
        self._rows, self._place = rows[order], place[order]


@dataclass(frozen=True, kw_only=True)
class Packs:
    """Some packs of a shard, numbered from `first` on.

    starts, triplet_starts: int64 [packs + 1], where each pack's rows and triplets begin.
    """

    shard: str
    rows: np.ndarray
    starts: np.ndarray
    triplets: Triplets
    triplet_starts: np.ndarray
    first: int = 0

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def names(self) -> list[str]:
        """Of the packs, for their draws."""
        return [f"{self.shard}/{self.first + n}" for n in range(len(self))]

    def take(self, first: int, last: int) -> "Packs":
        """The packs first to last - 1."""
        row, triplet = self.starts[[first, last]], self.triplet_starts[[first, last]]
        return Packs(
            shard=self.shard, rows=self.rows[slice(*row)], starts=self.starts[first : last + 1] - row[0],
            triplets=self.triplets.take(slice(*triplet)),
            triplet_starts=self.triplet_starts[first : last + 1] - triplet[0], first=self.first + first,
        )  # fmt: skip


def serialised_packs(
    rule: Rule, pool: Pool, payload: Payload, whole: Packs, fill: bool, limit: int = PAYLOAD_BYTES
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """TFRecords, uint8, the number of triplets of each, and int64 PACK_COUNTS, some packs at a time.

    limit: bytes of payload and embeddings that are held at a time, if a pack has no more.
    """
    sizes = pool.split.codes("length", whole.rows) + (4 * pool.dim if fill else 0)
    for first, last in packs.chunks(sizes, whole.starts, limit):
        chunk = whole.take(first, last)
        distinct, index = np.unique(chunk.rows, return_inverse=True)
        place, features = payload(distinct)
        block, label = pool.block(distinct) if fill else None, pool.split.class_of(distinct)
        edges = np.searchsorted(chunk.starts[:-1], np.arange(0, len(chunk.rows), SLICE_ROWS))
        for begin, end in itertools.pairwise(np.unique([*edges, len(chunk)])):
            some, here = chunk.take(begin, end), index[slice(*chunk.starts[[begin, end]])]
            if block is not None:
                found, starts, left_out = selection.select_within(
                    rule, block.take(here), label[here], some.starts, some.triplets, some.triplet_starts, some.names
                )
            else:
                found, starts, left_out = packs.lone(some.triplets), some.triplet_starts, {"skipped": 0, "guarded": 0}
            columns = {name: Column(values=of, index=place[here], starts=some.starts) for name, of in features.items()}
            columns["row"] = Column(values=some.rows, starts=some.starts)
            columns |= {name: Column(values=of, starts=starts) for name, of in found.items()}
            kinds = np.bincount(found["scope"] * len(selection.KINDS) + found["kind"], minlength=len(SCOPE_KINDS))
            counts = np.array([len(some), len(some.rows), left_out["skipped"], left_out["guarded"], *kinds])
            yield examples.serialise(columns), np.diff(starts), counts


Written = tuple[int, dict[str, Any], list[int]]  # a triplet shard, its manifest entry, its PACK_COUNTS


class WritePacks(_SideBySide):
    """(triplet shard, its Triplets in parts) -> manifest entry with counts: packs them, joins the payload."""

    stage, unit = "write", "packs"

    def __init__(self, job_: Job, shards: int):
        super().__init__(job_)
        self.shards = shards

    def setup(self) -> None:
        super().setup()
        self.payload = Payload(self.pool)

    def start_bundle(self) -> None:
        self.at_once = self.job.worker_threads() + 1  # one waits for the disk
        super().start_bundle()
        self.one_blas_thread = selection.one_blas_thread()

    def stop(self) -> None:
        super().stop()
        self.one_blas_thread.restore_original_limits()

    def process(self, element: tuple[int, Any], *_: Any) -> Iterator[Written]:
        # The parts are read here: a runner may fetch them as they are asked for, for the bundle's own thread only.
        number, parts = element
        yield from super().process((number, Triplets.concatenate([Triplets.none(), *parts])))

    def whole(self, number: int, triplets: Triplets) -> Packs:
        """The packs of a shard."""
        rule, split = self.job.rule, self.pool.split
        triplets = triplets.take(packs.hash_order(rule, triplets))
        own, other = split.class_ranges(triplets.anchor), split.class_ranges(triplets.negative)
        rows, row_starts, starts = packs.assemble(rule, triplets, own, other, self.job.pack_rows, self.job.fill, number)
        return Packs(shard=str(number), rows=rows, starts=row_starts, triplets=triplets, triplet_starts=starts)

    def work(self, element: tuple[int, Triplets]) -> tuple[Written, int]:
        number, whole = element[0], self.whole(*element)
        most, counts = 0, np.zeros(len(PACK_COUNTS), np.int64)

        def serialised() -> Iterator[tuple[np.ndarray, int]]:
            nonlocal most, counts
            fill, limit = self.job.pack_rows != packs.LONE, PAYLOAD_BYTES // self.at_once
            within = self.job.pack_rule
            for written, sizes, found in serialised_packs(within, self.pool, self.payload, whole, fill, limit):
                most, counts = max(most, int(sizes.max())), counts + found
                yield written, len(sizes)

        path = self.job.directory / "triplets" / f"triplets-{number:05d}-of-{self.shards:05d}.tfrecord"
        entry = records.write_framed(path, serialised())
        entry["max_pack_triplets"] = most  # so that a trainer can pad to one shape
        return (number, entry, counts.tolist()), entry["records"]


class GroupRows(_Step):
    """Number of a run of classes -> the same number, its groups of rows and its classes' means written."""

    def process(self, number: int, embedded: int) -> Iterator[int]:
        pool, started = self.pool, time.monotonic()
        if embedded != len(pool.split.shards):
            raise RuntimeError(f"{embedded} corpus shards were embedded, expected {len(pool.split.shards)}")
        rows = pool.row(np.arange(*pool.class_runs(GROUP_ROWS)[number : number + 2]))
        block, label = pool.block(rows), pool.split.class_of(rows)
        groups = spread.group_rows(self.job.rule, block, label, self.job.fill)
        first = np.flatnonzero(np.diff(label, prepend=-1))
        sums = np.stack([np.add.reduceat(column, first, dtype=np.float64) for column in block.embedding.T], axis=1)
        means = sums / np.diff(first, append=len(label))[:, None]
        save_arrays(self.job.work / "groups" / f"{number:06d}.npz", **vars(groups), means=means)
        job.count("group", "rows", len(rows), started)
        yield number


class DealGroups(_Step):
    """Any element -> the round's counts, once all groups are there: the rows of all packs are written."""

    def process(self, _: Any, grouped: int) -> Iterator[dict[str, int]]:
        pool, job_ = self.pool, self.job
        runs = len(pool.class_runs(GROUP_ROWS)) - 1
        if runs != grouped:
            raise RuntimeError(f"the groups of {grouped} runs of classes were written, expected {runs}")
        parts, means = [], []
        for number in range(runs):
            arrays = records.read_arrays(job_.work / "groups" / f"{number:06d}.npz")
            means.append(arrays.pop("means"))
            parts.append(spread.Groups(**arrays))
        groups = spread.Groups.concatenate(parts)
        place = spread.order_classes(np.concatenate(means), job_.pack_rows // job_.fill)
        place = place[np.searchsorted(pool.classes, groups.label)]
        rows, starts = spread.deal(job_.rule, groups, place, job_.pack_rows, job_.fill)
        lone = pool.rows - len(np.unique(groups.row))
        there = len(np.unique(rows))
        if job_.anchors is not None and job_.anchors < pool.rows:  # then none is missed
            starts, lone, there = starts[: max(2, int(np.searchsorted(starts, job_.anchors, "right")))], 0, pool.rows
        storage.write_atomically(job_.work / "pack-rows.npy", lambda path: np.save(path, rows[: starts[-1]]))
        storage.write_atomically(job_.work / "pack-starts.npy", lambda path: np.save(path, starts))
        counts = {"anchors_without_positive": lone, "rows_in_packs_of_one_class": pool.rows - lone - there}
        yield {"pairs": 0, "fallback": 0, "guarded": 0, **counts}


class WriteSpread(WritePacks):
    """(triplet shard, nothing) -> manifest entry with counts: the shard's share of the packs that were dealt."""

    def whole(self, number: int, triplets: Triplets) -> Packs:
        starts = records.open_array(self.job.work / "pack-starts.npy")
        first, last = (n * (len(starts) - 1) // self.shards for n in (number, number + 1))
        starts = np.array(starts[first : last + 1])
        rows = np.array(records.open_array(self.job.work / "pack-rows.npy")[starts[0] : starts[-1]])
        return Packs(
            shard=str(number), rows=rows, starts=starts - starts[0], triplets=triplets,
            triplet_starts=np.zeros(len(starts), np.int64),
        )  # fmt: skip


def _sum_counts(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for entry in counts:
        for name, value in entry.items():
            total[name] = total.get(name, 0) + value
    return total


# ---- The graph. ----


def embedded(pipeline: beam.Pipeline, job_: Job, corpus_shards: int) -> Any:
    """A PCollection of the corpus shards' numbers, each once its embeddings are written."""
    return (
        pipeline
        | "Count corpus shards" >> beam.Create([corpus_shards])
        | "List corpus shards" >> beam.FlatMap(lambda count: range(count))
        | "Spread shards" >> beam.Reshuffle()
        | "Embed" >> beam.ParDo(EmbedShard(job_))
    )


def graph(pipeline: beam.Pipeline, job_: Job, anchors: int, blocks: int, corpus_shards: int, shards: int) -> None:
    """From corpus shards and a checkpoint to triplet shards and their manifest, which is written last.

    Workers count for themselves: lists of a large round would not fit into the graph that goes to an engine.
    """
    dealt = (
        embedded(pipeline, job_, corpus_shards)
        | "Deal" >> beam.ParDo(DealColumns(job_))  # (column block, Block)
        | "Gather columns" >> beam.GroupByKey()
        | "Write columns" >> beam.ParDo(WriteColumns(job_))  # column block
        | "Count columns" >> beam.combiners.Count.Globally()
    )
    chosen = (
        pipeline
        | "Count anchors" >> beam.Create([(anchors, blocks)])
        | "List work items" >> beam.FlatMapTuple(functools.partial(work_items, job_))
        | "Spread items" >> beam.Reshuffle()
        | "Scan" >> beam.ParDo(Scan(job_), beam.pvalue.AsSingleton(dealt))  # (item number, (Item, Found))
        | "Merge" >> beam.CombinePerKey(MergeFound())
        | "Choose" >> beam.ParDo(ChooseNegatives(job_, shards)).with_outputs(ChooseNegatives.COUNTS, main="triplets")
    )
    every_shard = (
        pipeline
        | "Count triplet shards" >> beam.Create([shards])
        | "List triplet shards" >> beam.FlatMap(lambda count: ((n, Triplets.none()) for n in range(count)))
    )
    counts = chosen[ChooseNegatives.COUNTS] | "Sum counts" >> beam.CombineGlobally(_sum_counts)
    (
        (chosen.triplets, every_shard)
        | "Join shards" >> beam.Flatten()
        | "Gather triplets" >> beam.GroupByKey()  # (triplet shard, [Triplets])
        | "Write packs" >> beam.ParDo(WritePacks(job_, shards))  # (triplet shard, entry, counts)
        | "Gather entries" >> beam.combiners.ToList()
        | "Commit" >> beam.Map(commit, beam.pvalue.AsSingleton(counts), job_)
    )


def spread_graph(pipeline: beam.Pipeline, job_: Job, runs: int, corpus_shards: int, shards: int) -> None:
    """The same for `--packs spread`: nothing is scanned. runs: of classes, see GroupRows."""
    count = embedded(pipeline, job_, corpus_shards) | "Count embedded" >> beam.combiners.Count.Globally()
    grouped = (
        pipeline
        | "Count runs" >> beam.Create([runs])
        | "List runs" >> beam.FlatMap(lambda count: range(count))
        | "Spread runs" >> beam.Reshuffle()
        | "Group" >> beam.ParDo(GroupRows(job_), beam.pvalue.AsSingleton(count))  # number of the run
        | "Count groups" >> beam.combiners.Count.Globally()
    )
    counts = beam.pvalue.AsSingleton(
        pipeline
        | "One deal" >> beam.Create([None])
        | "Deal groups" >> beam.ParDo(DealGroups(job_), beam.pvalue.AsSingleton(grouped))
    )
    (
        pipeline
        | "Count triplet shards" >> beam.Create([shards])
        | "List triplet shards" >> beam.FlatMap(lambda count: ((n, ()) for n in range(count)))
        | "Spread triplet shards" >> beam.Reshuffle()
        | "Write packs" >> beam.ParDo(WriteSpread(job_, shards), counts)  # (triplet shard, entry, counts)
        | "Gather entries" >> beam.combiners.ToList()
        | "Commit" >> beam.Map(commit, counts, job_)
    )


def commit(written: list[Written], counts: dict[str, int], job_: Job) -> None:
    """Writes triplets.json: from here on the round is mined."""
    written = sorted(written, key=lambda entry: entry[0])
    packed = dict(zip(PACK_COUNTS, np.sum([entry[2] for entry in written], axis=0).tolist(), strict=True))
    triplets = {scope: {kind: packed[f"{scope}/{kind}"] for kind in selection.KINDS} for scope in records.SCOPES}
    made = sum(sum(kinds.values()) for kinds in triplets.values())
    if not made:
        pool = job_.open_pool()
        norm = np.linalg.norm(pool.embeddings(pool.row(np.arange(min(pool.rows, COLLAPSE_ROWS)))).mean(axis=0))
        raise InputError(
            f"round {job_.round} has no triplet, out of {counts['pairs'] + packed['pack_skipped']} pairs: {counts}. "
            + (
                f"All embeddings lie together (their mean has norm {norm:.3f}): start from other weights, or warm up "
                f"with another --learning_rate, in a new --run_dir."
                if norm > COLLAPSED
                else "A larger --margin, other --negatives or weaker guards find more; anchors without a positive need "
                "more rows in their class."
            )
        )
    corpus = records.open_corpus(job_.run_dir)
    shards = [entry[1] for entry in written]
    fixed = ("pairs", "fallback", "guarded")
    manifest = {
        "format": records.TRIPLETS_FORMAT,
        "round": job_.round,
        "corpus_fingerprint": job_.corpus_fingerprint,
        "checkpoint_digest": job_.checkpoint_digest,
        "metric": records.METRIC,
        "margin": job_.rule.margin,
        "seed": job_.rule.seed,
        "options": job_.options(),
        "definitions": {
            "semi-hard": "another label and d_ap < d_an < d_ap + margin",
            "hard": "another label and d_an <= d_ap",
        },
        "kinds": list(selection.KINDS),
        "scopes": list(records.SCOPES),
        "features": corpus.packed_features,
        "pack_rows": job_.pack_rows,
        "packs": packed["packs"],
        "rows": packed["rows"],
        "triplets": made,
        "counts": triplets,
        "pairs": {"corpus": counts["pairs"]},
        "fallback": counts["fallback"],
        "guarded": {"corpus": counts["guarded"], "pack": packed["pack_guarded"]},
        "skipped": {
            "corpus": {name: n for name, n in counts.items() if name not in fixed},
            "pack": {"no_negative_in_pack": packed["pack_skipped"]},
        },
        "shards": shards,
        "triplet_digest": records.sha256_of_json([entry["sha256"] for entry in shards]),
        "versions": {name: version(name) for name in ("tensorflow", "apache-beam", "numpy", "triplet-miner")},
    }
    records.write_json(job_.directory / "triplets" / "triplets.json", manifest)


# ---- The command. ----


def draw_anchors(job_: Job, pool: Pool) -> np.ndarray:
    """int64 [n], ascending: every row of the pool, or the `--anchors` of them with the lowest hashes."""
    rows = pool.row(np.arange(pool.rows))
    if job_.anchors is None or job_.anchors >= len(rows):
        return rows
    return np.sort(
        rows[np.argsort(selection.row_hashes(job_.rule.key("anchors"), rows), kind="stable")[: job_.anchors]]
    )


def work_items(job_: Job, anchors: int, blocks: int) -> Iterator[Item]:
    """Cuts the round into work items. `random` needs an anchor block's columns whole; `nearest` may split them."""
    step = blocks if job_.rule.pick == "random" else ITEM_COLUMNS
    for n in range(-(-anchors // (ITEM_BLOCKS * ANCHOR_BLOCK))):
        for c in range(0, blocks, step):
            yield Item(number=n, first_column=c, last_column=min(c + step, blocks))


def triplet_shards(pairs: int) -> int:
    """How many triplet shards a round gets: 2,000 of growing size between the two limits of SHARD_PAIRS."""
    least, most = SHARD_PAIRS
    return -(-pairs // min(max(pairs // 2000, least), most))


def clear_leftovers(job_: Job) -> None:
    """Removes what an interrupted run left and a new one does not continue with."""
    storage.remove(job_.directory / "triplets")  # without a manifest these are no triplets
    for name in storage.names(job_.directory / "work"):
        if name != job_.work.name:
            storage.remove(job_.work.with_name(name))


def mine(job_: Job, options: Any) -> tuple[dict[str, Any], list[job.Worked]]:
    """Mines a round. Returns its manifest, and what the workers did."""
    started = time.time()
    pool = job_.open_pool()
    if len(pool.classes) < 2:
        raise InputError(
            f"{pool.corpus.directory}: classes that take part: {len(pool.classes)}; a negative needs two. Raise "
            f"--class_pool, or ingest a source with two classes or more into a new --run_dir."
        )
    clear_leftovers(job_)
    corpus_shards = len(pool.split.shards)
    stages = [Stage("embed", "shards", corpus_shards, lambda: job.count_files(job_.embeddings, ".npy"))]
    if job_.packs == "spread":
        shards, runs = triplet_shards(min(job_.anchors or pool.rows, pool.rows)), len(pool.class_runs(GROUP_ROWS)) - 1
        stages.append(Stage("group", "runs", runs, lambda: job.count_files(job_.work / "groups", ".npz")))
        build = functools.partial(spread_graph, job_=job_, runs=runs, corpus_shards=corpus_shards, shards=shards)
    else:
        anchors, blocks = draw_anchors(job_, pool), selection.column_blocks(pool.rows)
        storage.write_atomically(job_.work / "anchors.npy", lambda path: np.save(path, anchors))
        shards = triplet_shards(len(anchors) * job_.rule.positives)
        items = sum(1 for _ in work_items(job_, len(anchors), blocks))
        stages += [
            Stage("columns", "blocks", blocks, lambda: job.count_files(job_.work / "columns", ".npz")),
            Stage("scan", "work items", items, lambda: job.count_files(job_.work / "found", ".npz")),
        ]
        build = functools.partial(
            graph, job_=job_, anchors=len(anchors), blocks=blocks, corpus_shards=corpus_shards, shards=shards
        )
    stages.append(Stage("write", "shards", shards, lambda: job.count_files(job_.directory / "triplets", ".tfrecord")))
    with live(*stages):
        worked = job.run(options, build)
    storage.remove(job_.directory / "work")
    manifest = records.read_json(job_.directory / "triplets" / "triplets.json", records.TRIPLETS_FORMAT)
    records.write_json(
        job_.directory / "stats.json",
        {
            "mining_seconds": round(time.time() - started, 2),
            "worker_seconds": {row.stage: row.seconds for row in worked},
            "worker_items": {row.stage: row.items for row in worked},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )
    return manifest, worked


def summary(manifest: dict[str, Any], run_dir: Path, worked: Sequence[job.Worked] = ()) -> str:
    directory = records.round_dir(run_dir, manifest["round"]) / "triplets"
    size = f"{manifest['packs']:,} packs of {manifest['rows']:,} rows"
    lines = [f"round {manifest['round']}: {manifest['triplets']:,} triplets in {size}"]
    for scope in records.SCOPES:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in manifest["counts"][scope].items() if n)
        lines.append(f"  {'over the whole corpus' if scope == 'corpus' else 'inside the packs':<22}{kinds or 'none'}")
    skipped = {**manifest["skipped"]["corpus"], **manifest["skipped"]["pack"]}
    reasons = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in skipped.items() if n)
    lines.append(f"  {'skipped':<22}{reasons or 'none'}")
    if any(manifest["guarded"].values()):
        lines.append(f"  {'guards acted on':<22}{sum(manifest['guarded'].values()):,} pairs")
    lines += job.table(worked)
    lines.append(f"  in {directory}   next: python -m trainer.train --run_dir {run_dir}")
    return "\n".join(lines)


def parse_shares(text: str) -> tuple[tuple[str, float], ...]:
    """`semi-hard,hard` or `semi-hard:3,hard:1`."""
    try:
        pairs = [part.partition(":") for part in text.split(",")]
        return tuple((kind.strip(), float(share) if share else 1.0) for kind, _, share in pairs)
    except ValueError:
        raise InputError(f"--negatives takes kinds with shares, as semi-hard:3,hard:1; found {text!r}") from None


def main(argv: list[str]) -> int:
    parser = command.Parser(
        "pipeline.mine", "--run_dir DIR [options, also Apache Beam's]", "Mine the newest checkpoint's round.",
        fromfile_prefix_chars="@",
    )
    parser.add_argument("--run_dir", type=storage.location, required=True, help="with the corpus and the rounds")
    what = parser.add_argument_group("what a triplet is")
    what.add_argument("--negatives", default="semi-hard", help="kinds with shares: semi-hard:3,hard:1 (semi-hard)")
    what.add_argument("--pick", choices=("random", "nearest"), help="out of all that qualify (random)")
    what.add_argument("--pack_pick", choices=("random", "nearest"), help="for triplets inside the packs (as --pick)")
    what.add_argument("--margin", type=float, default=0.2, help="of the band and of the loss (0.2)")
    what.add_argument("--positives", type=int, default=1, help="per anchor (1)")
    what.add_argument("--seed", type=int, default=0, help="of every draw (0)")
    guards = parser.add_argument_group("guards against false negatives")
    guards.add_argument("--min_negative_distance", type=float, default=0.0, help="leave out d_an below it (0: off)")
    guards.add_argument("--min_negative_ratio", type=float, default=0.0, help="leave out d_an < ratio * d_ap (0: off)")
    work = parser.add_argument_group("how much work")
    work.add_argument("--anchors", type=int, help="this many anchors; with --packs spread, rows (all)")
    work.add_argument("--class_pool", type=int, help="this round embeds and sees this many classes (all)")
    work.add_argument(
        "--packs", default="triplets", choices=PACKS,
        help="begin with triplets over the corpus; or spread: every row once, pairs and classes far apart (triplets)",
    )  # fmt: skip
    work.add_argument("--pack_rows", type=int, default=128, help="rows a record holds; 3: lone triplets (128)")
    work.add_argument("--fill", type=int, help="rows that each class in a record is filled to (4)")
    work.add_argument("--threads", type=int, help="of a worker, in all that it does (as many as it has cores)")
    command.add_options(parser)
    arguments, rest = parser.parse_known_args(argv)
    command.begin(arguments)
    options = job.beam_options(rest, parser.option_names())
    run_dir = arguments.run_dir
    corpus = records.open_corpus(run_dir)
    number = records.newest_round(run_dir, records.checkpoint_path)
    if number is None:
        # The trainer chooses the network; this package never imports it.
        code = command.call("trainer.train", "--run_dir", run_dir, "--init")
        if code:
            return code
    divide_cores(max(1, arguments.threads or os.cpu_count() or 1))
    with command.hold(run_dir, "mine"):
        return mine_newest(arguments, options, corpus)


def mine_newest(arguments: argparse.Namespace, options: Any, corpus: Corpus) -> int:
    """Mines the newest checkpoint's round, unless it is mined."""
    run_dir = arguments.run_dir
    number = records.newest_round(run_dir, records.checkpoint_path)
    assert number is not None, "main has seen to a first checkpoint"
    for name in ("fill", "pack_pick", "packs"):
        if getattr(arguments, name) not in (None, "triplets") and arguments.pack_rows == packs.LONE:
            raise InputError(
                f"--{name} does nothing for lone triplets (--pack_rows {packs.LONE}); leave one out. "
                "pipeline.rounds gives it unless told --plain."
            )
    if arguments.positives > 1 and arguments.packs == "spread":
        raise InputError(
            f"--packs spread takes no --positives; found {arguments.positives}. Leave it out, or add --packs triplets: "
            "pipeline.rounds gives the former unless told --plain."
        )
    if arguments.packs == "spread" and arguments.pick and arguments.pack_pick:
        raise InputError("--packs spread has triplets inside packs only: --pack_pick decides, leave --pick out")
    arguments.pick = arguments.pick or "random"
    arguments.fill = FILL if arguments.fill is None else arguments.fill
    try:
        rule = Rule(
            shares=parse_shares(arguments.negatives), round=number,
            **{name: getattr(arguments, name) for name in (
                "pick", "margin", "positives", "seed", "min_negative_distance", "min_negative_ratio")},
        )  # fmt: skip
        model = records.load_checkpoint(records.checkpoint_path(run_dir, number))
        job_ = Job(
            run_dir=run_dir.absolute(), round=number, rule=rule, corpus_fingerprint=corpus.fingerprint,
            checkpoint_digest=records.checkpoint_digest(model),
            **{name: getattr(arguments, name) for name in (
                "packs", "pack_rows", "fill", "pack_pick", "anchors", "class_pool", "threads")},
        )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from None
    manifest_path = records.manifest_path(run_dir, number)
    if manifest_path.exists() and not records.is_torn(manifest_path, job_.directory / "work"):
        return already_mined(job_, corpus)
    _loaded[job_.checkpoint_digest] = model
    try:
        manifest, worked = mine(job_, options)
    finally:
        _loaded.clear()
    command.note(**facts(manifest))
    print(summary(manifest, run_dir, worked))
    return 0


def facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """What `--summary_json` gets of a mined round."""
    return {name: manifest[name] for name in ("round", "triplets", "packs", "counts", "skipped", "triplet_digest")}


def already_mined(job_: Job, corpus: Corpus) -> int:
    """Says so and changes nothing; refuses if the round was mined from something else."""
    manifest = records.open_triplets(job_.run_dir, job_.round, corpus)
    directory = records.manifest_path(job_.run_dir, job_.round).parent
    there = manifest["options"]
    there = {"packs": "triplets", "fill": FILL, "pack_pick": there["pick"], **there}  # those of earlier versions
    asked = json.loads(json.dumps(job_.options()))
    for name, found, expected in (
        ("checkpoint", manifest["checkpoint_digest"][:12], job_.checkpoint_digest[:12]),
        *((name, there.get(name), value) for name, value in asked.items()),
    ):
        if found != expected:
            raise InputError(
                f"round {job_.round} is mined already with {name} {found}, asked for {expected}. Train it, or remove "
                f"{directory} to mine it again."
            )
    storage.remove(job_.directory / "work")  # if the run that mined was killed just then
    command.note(**facts(manifest))
    print(f"round {job_.round} is mined already; nothing to do")
    print(summary(manifest, job_.run_dir))
    return 0


if __name__ == "__main__":
    # Imported under its own name, so that workers can unpickle what is defined here.
    from pipeline.mine import main as imported_main

    command.run(imported_main)
