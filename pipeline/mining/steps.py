"""What happens to one element of the graph.

Each step reads files by name and writes files by name, so that it can run anywhere and again.
"""

import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.utils import shared

from pipeline.corpus.corpus import Split
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.machine import machine_kind
from pipeline.embedding.network import load_network
from pipeline.embedding.store import GIVEN
from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.manifests import Shard
from pipeline.mining.work import Item, Job
from pipeline.packs import fill, spread
from pipeline.packs.packs import Packs
from pipeline.packs.payload import Payload
from pipeline.packs.write import write_packs
from pipeline.process.commands import log
from pipeline.triplets import device
from pipeline.triplets.columns import ANCHOR_BLOCK, COLUMN_BLOCK, column_block_of, column_blocks
from pipeline.triplets.given import valid_triplets
from pipeline.triplets.pairs import draw_positives, make_pairs
from pipeline.triplets.rows import Block, Found, Pairs, Triplets
from pipeline.triplets.scan import choose, merge, scan_nearest, scan_random

GROUP_ROWS = 1 << 16  # rows whose groups are looked for at a time, in whole classes
GIVEN_TRIPLETS = 1 << 14  # in a part; each takes three embeddings in memory
CACHE_BYTES = 256 << 20  # of column blocks, kept per process or on its device
COUNTS = "counts"  # the second output of steps that find triplets


class Step(beam.DoFn):
    """A step that knows the job, and opens corpus and embeddings once per worker."""

    def __init__(self, job: Job):
        self.job = job

    def setup(self) -> None:
        self.store = self.job.open_store()
        self.split: Split = self.store.split


class EmbedShard(Step):
    """corpus shard number -> the same number, its embeddings written.

    A round's embeddings come from one kind of machine: a shard that another kind embedded is embedded again.
    """

    def __init__(self, job: Job):
        super().__init__(job)
        self.handle = shared.Shared()

    def setup(self) -> None:
        super().setup()
        self.machine = machine_kind()
        self.told = {self.machine, GIVEN}

    def process(self, number: int) -> Iterator[int]:
        self.split.check_shard(number)
        made_on = self.store.made_on(number)
        if made_on not in (self.machine, GIVEN):
            if made_on is not None and made_on not in self.told:
                self.told.add(made_on)
                log.warning(
                    "round %d: what was embedded on another kind of machine (%s) is embedded again on this one (%s): "
                    "the last digits differ", self.job.round.number, made_on or "unknown", self.machine,
                )  # fmt: skip
            embedder = self.handle.acquire(self._load, tag=self.job.checkpoint_digest)
            rows = np.arange(*self.split.shard_rows[number : number + 2])
            self.store.write(number, embedder(self.split.read(rows), self.split.number_of(rows)), self.machine)
        yield number

    def _load(self) -> Embedder:
        path = self.job.round.checkpoint
        network = load_network(path)
        digest, expected = network.digest(), self.job.checkpoint_digest
        if digest != expected:
            raise InputError(
                f"{path} changed while its round was mined: {digest[:12]}, at the start {expected[:12]}. Mine again."
            )
        return Embedder(network, self.job.open_corpus().feature)


# ---- Triplets over the corpus. ----


class DealColumns(Step):
    """corpus shard number -> (column block, part of it), its rows dealt by hash."""

    def process(self, number: int) -> Iterator[tuple[int, Block]]:
        rows = np.arange(*self.split.shard_rows[number : number + 2])
        whole = self.store.block(rows)
        for block, where in _by(column_block_of(self.job.rule, rows, column_blocks(self.split.rows))):
            yield block, whole.take(where)


def _by(codes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each code, ascending, and where it is."""
    order = np.argsort(codes, kind="stable")
    for where in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(where):
            yield int(codes[where[0]]), where


class WriteColumns(Step):
    """(column block, its parts) -> its number, written in order of rows."""

    def process(self, element: tuple[int, Iterable[Block]]) -> Iterator[int]:
        number, parts = element
        block = Block.concatenate(list(parts))
        path = self.job.work / "columns" / f"{number:06d}.npz"
        storage.save_arrays(path, **vars(block.take(np.argsort(block.row))))
        yield number


class SelectionStep(Step):
    """A step that works with the pairs of an item."""

    def pairs(self, item: Item) -> Pairs:
        """An item's anchors with their positives drawn: the same wherever and however often it is asked for."""
        rule, size = self.job.rule, self.job.tiling.blocks * ANCHOR_BLOCK
        every = storage.open_array(self.job.work / "anchors.npy")
        anchors = np.array(every[item.number * size : (item.number + 1) * size])
        own = self.split.class_ranges(anchors)
        copies = (lambda lo, hi: self.split.codes("content", np.arange(lo, hi))) if self.split.copies else None
        positive = draw_positives(rule, anchors, own, copies)
        rows = np.where(positive >= 0, positive, anchors[:, None])
        embedding = self.store.embeddings(rows.ravel()).reshape(*positive.shape, -1)
        return make_pairs(rule, self.store.block(anchors), own, positive, embedding)


class Scan(SelectionStep):
    """Item -> (number of its anchors, (Item, Found)): the item's anchors against its columns."""

    def setup(self) -> None:
        super().setup()
        self.on_device = self.job.scans_on_gpu()

    def _read(self, number: int) -> Block:
        return Block(**storage.read_arrays(self.job.work / "columns" / f"{number:06d}.npz"))

    @functools.cached_property
    def columns(self) -> Callable[[int], Block]:
        """Column blocks by number, read from files and kept while they fit in CACHE_BYTES."""
        return functools.lru_cache(max(1, CACHE_BYTES // (4 * self.store.dim * COLUMN_BLOCK)))(self._read)

    @functools.cached_property
    def uploaded(self) -> Callable[[range], device.Columns]:
        """The same for lists of column blocks, on the device."""
        blocks = 1 if self.job.rule.pick == "random" else self.job.tiling.columns
        kept = max(1, CACHE_BYTES // (4 * self.store.dim * device.WIDTH * blocks))
        return functools.lru_cache(kept)(lambda numbers: device.upload([*map(self._read, numbers)]))

    def scan(self, item: Item) -> Found:
        rule, pairs, blocks = self.job.rule, self.pairs(item), column_blocks(self.split.rows)
        first, numbers = item.number * self.job.tiling.blocks, range(item.first_column, item.last_column)
        if self.on_device and rule.pick == "random":
            return device.scan_random(rule, pairs, first, lambda n: self.uploaded(range(n, n + 1)), blocks)
        if self.on_device:
            return device.scan_nearest(rule, pairs, self.uploaded(numbers))
        if rule.pick == "random":
            return scan_random(rule, pairs, first, self.columns, blocks, self.job.worker_threads())
        return scan_nearest(rule, pairs, map(self.columns, numbers), self.job.worker_threads())

    def process(self, item: Item, written: int) -> Iterator[tuple[int, tuple[Item, Found]]]:
        _expect("column blocks", written, column_blocks(self.split.rows))
        path = self.job.work / "found" / f"{item.number:06d}-{item.first_column:06d}.npz"
        found = _read_found(path)
        if found is None:
            found = self.scan(item)
            storage.save_arrays(path, **vars(found))
        yield item.number, (item, found)


def _read_found(path: Path) -> Found | None:
    """What an interrupted run left, if it is there and whole."""
    try:
        return Found(**storage.read_arrays(path))
    except (FileNotFoundError, InputError, TypeError):
        return None


def _expect(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise RuntimeError(f"{found} {what} were written, expected {expected}")


class MergeFound(beam.CombineFn):
    """Merges an item's partial results, one per list of column blocks. Associative and commutative."""

    def create_accumulator(self) -> None:
        return None

    def add_input(self, one: Any, other: Any) -> Any:
        if one is None or other is None:
            return other if one is None else one
        return one[0], merge(one[1], other[1])

    def merge_accumulators(self, accumulators: Any) -> Any:
        return functools.reduce(self.add_input, accumulators, None)

    def extract_output(self, accumulator: Any) -> Any:
        return accumulator


class ChooseNegatives(SelectionStep):
    """(number, (item, Found)) -> (triplet shard, Triplets); counts go to the output COUNTS."""

    def process(self, element: tuple[int, tuple[Item, Found]]) -> Iterator[Any]:
        item, found = element[1]
        triplets, counts = choose(self.job.rule, self.pairs(item), found)
        yield from _by_shard(self.job, self.split, triplets, Counter(counts))


class TakeGiven(Step):
    """Number of a part of the given triplets -> (triplet shard, Triplets), the valid ones; counts go to COUNTS.

    In the counts each valid one is a pair more. Those of anchors that were not drawn are left out.
    """

    def setup(self) -> None:
        super().setup()
        self.given = self.job.open_corpus().given_triplets()

    def process(self, number: int, embedded: int) -> Iterator[Any]:
        _expect("shards of embeddings", embedded, self.store.files)
        rows = np.array(self.given[number * GIVEN_TRIPLETS : (number + 1) * GIVEN_TRIPLETS])
        anchors = storage.open_array(self.job.work / "anchors.npy")
        rows = rows[anchors[np.searchsorted(anchors, rows[:, 0], "right") - 1] == rows[:, 0]]
        triplets = valid_triplets(self.job.rule, *map(self.store.block, rows.T))
        counts = Counter(pairs=len(triplets), given_triplets_not_valid=len(rows) - len(triplets))
        yield from _by_shard(self.job, self.split, triplets, counts)


def _by_shard(job: Job, split: Split, triplets: Triplets, counts: Counter[str]) -> Iterator[Any]:
    for shard, where in _by(fill.shard_of(job.rule, triplets, job.shards(split.rows))):
        yield shard, triplets.take(where)
    yield beam.pvalue.TaggedOutput(COUNTS, counts)


class FillPacks(Step):
    """(triplet shard, its Triplets in parts) -> its Packs."""

    def process(self, element: tuple[int, Iterable[Triplets]]) -> Iterator[Packs]:
        number, parts = element
        triplets = Triplets.concatenate([Triplets.none(), *parts])
        triplets = triplets.take(fill.hash_order(self.job.rule, triplets))
        own, other = self.split.class_ranges(triplets.anchor), self.split.class_ranges(triplets.negative)
        yield fill.assemble(self.job.rule, self.job.packing, number, triplets, own, other)


# ---- Rows spread over packs. ----


def class_runs(split: Split) -> np.ndarray:
    """int64 [runs + 1]: cuts the split into runs of whole classes, of about GROUP_ROWS rows each."""
    cuts = np.searchsorted(split.first_rows, np.arange(0, split.rows, GROUP_ROWS))
    return np.unique(np.append(split.first_rows[cuts], split.rows))


class GroupRows(Step):
    """Number of a run of classes -> the same number, its groups of rows and its classes' means written."""

    def process(self, number: int, embedded: int) -> Iterator[int]:
        _expect("shards of embeddings", embedded, self.store.files)
        rows = np.arange(*class_runs(self.split)[number : number + 2])
        block, label = self.store.block(rows), self.split.class_of(rows)
        groups = spread.group_rows(self.job.rule, block, label, self.job.packing.fill)
        means = spread.class_means(block.embedding, label)
        storage.save_arrays(self.job.work / "groups" / f"{number:06d}.npz", **vars(groups), means=means)
        yield number


class DealGroups(Step):
    """Any element -> the round's counts, once all groups are there: the rows of all packs are written."""

    def process(self, _: Any, grouped: int) -> Iterator[Counter[str]]:
        rule, packing = self.job.rule, self.job.packing
        runs = len(class_runs(self.split)) - 1
        _expect("runs of groups", grouped, runs)
        parts = []
        with tempfile.TemporaryFile() as file:  # a million means may not fit into memory
            for number in range(runs):
                arrays = storage.read_arrays(self.job.work / "groups" / f"{number:06d}.npz")
                arrays.pop("means").tofile(file)
                parts.append(spread.Groups(**arrays))
            means = np.memmap(file, np.float64, "r").reshape(self.split.classes, -1)
            place = spread.order_classes(means, packing.pack_rows // packing.fill)
        groups = spread.Groups.concatenate(parts)
        rows, starts = spread.deal(rule, groups, place[groups.label], packing.pack_rows, packing.fill)
        storage.save_array(self.job.work / "pack-rows.npy", rows)
        storage.save_array(self.job.work / "pack-starts.npy", starts)
        grouped_rows, dealt_rows = len(np.unique(groups.row)), len(np.unique(rows))
        yield Counter(
            anchors_without_positive=self.split.rows - grouped_rows,
            rows_in_packs_of_one_class=grouped_rows - dealt_rows,
        )


class TakePacks(Step):
    """triplet shard -> its share of the Packs that were dealt."""

    def process(self, number: int, _: Any) -> Iterator[Packs]:
        starts = storage.open_array(self.job.work / "pack-starts.npy")
        shards = self.job.shards(self.split.rows)
        first, last = (n * (len(starts) - 1) // shards for n in (number, number + 1))
        starts = np.array(starts[first : last + 1])
        rows = np.array(storage.open_array(self.job.work / "pack-rows.npy")[starts[0] : starts[-1]])
        none = np.zeros(len(starts), np.int64)
        yield Packs(shard=number, rows=rows, starts=starts - starts[0], triplets=Triplets.none(), triplet_starts=none)


# ---- Both. ----


class WriteShard(Step):
    """Packs of a triplet shard -> (shard, its entry in the manifest, counts): written, with payload."""

    def setup(self) -> None:
        super().setup()
        self.payload = Payload(self.split)

    def process(self, packs: Packs) -> Iterator[tuple[int, Shard, Counter[str]]]:
        self.job.check_newest()
        name = f"triplets-{packs.shard:05d}-of-{self.job.shards(self.split.rows):05d}.tfrecord"
        lone, path = self.job.packing.lone, self.job.round.triplets / name
        shard, counts = write_packs(path, self.job.pack_rule, packs, lone, self.store, self.payload)
        yield packs.shard, shard, counts
