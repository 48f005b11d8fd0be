"""How a round would lie on 1,000 workers: the real dealing of rows, the real sizes of what is shuffled, no cluster.

    python -m benchmarks.scale --rows 10000000

Rows are dealt by the project's own hashes; element sizes are those of pickled elements; the schedule hands each free
worker the next item, with the seconds of an item drawn from --spread around those measured on one core. Distances are
not computed.
"""

import argparse
import heapq
import pickle
import sys
from pathlib import Path

import numpy as np

from benchmarks.table import Row, finish, show
from pipeline import mine, packs, selection
from pipeline.selection import Block, Found, Pairs, Rule, Triplets

PAIRS_A_SECOND = 0.7e9  # `nearest`: anchor against row, one core, 64 dimensions: `make bench-selection`
ANCHORS_A_SECOND = 30e3  # `random`, where bands are not empty, likewise
CHUNK = 1 << 20  # rows hashed at a time


def deal(rule: Rule, rows: int) -> np.ndarray:
    """int64 [blocks]: how many rows each column block gets."""
    blocks = selection.column_blocks(rows)
    sizes = np.zeros(blocks, np.int64)
    for start in range(0, rows, CHUNK):
        dealt = selection.column_block_of(rule, np.arange(start, min(start + CHUNK, rows)), blocks)
        sizes += np.bincount(dealt, minlength=blocks)
    return sizes


def shard_sizes(rule: Rule, anchors: int) -> np.ndarray:
    """int64 [triplet shards]: how many pairs each gets, one positive an anchor."""
    shards = mine.triplet_shards(anchors * rule.positives)
    sizes = np.zeros(shards, np.int64)
    for start in range(0, anchors, CHUNK):
        anchor = np.arange(start, min(start + CHUNK, anchors))
        columns = dict.fromkeys(("kind", "d_ap", "d_an"), np.zeros(len(anchor)))
        triplets = Triplets(anchor=anchor, positive=anchor ^ 1, negative=anchor, **columns)
        sizes += np.bincount(packs.shard_of(rule, triplets, shards), minlength=shards)
    return sizes


def block_bytes(rows: int, dim: int) -> int:
    """Of a pickled part of a column block."""
    part = Block(row=np.arange(rows), embedding=np.zeros((rows, dim), np.float32))
    return len(pickle.dumps((0, part), pickle.HIGHEST_PROTOCOL))


def triplets_bytes(pairs: int) -> int:
    whole = Triplets(
        **dict.fromkeys(("anchor", "positive", "negative"), np.zeros(pairs, np.int64)),
        kind=np.zeros(pairs, np.int8), **dict.fromkeys(("d_ap", "d_an"), np.zeros(pairs, np.float32)),
    )  # fmt: skip
    return len(pickle.dumps((0, whole), pickle.HIGHEST_PROTOCOL))


def found_bytes(rule: Rule) -> int:
    """Of a pickled work item with what was found for it."""
    anchors = mine.ITEM_BLOCKS * selection.ANCHOR_BLOCK
    rows, own = np.arange(anchors), np.zeros((anchors, 2), np.int64)
    positive = np.zeros((anchors, rule.positives), np.int64)
    embedding = np.zeros((anchors, rule.positives, 2), np.float32)
    anchor = Block(row=rows, embedding=np.zeros((anchors, 2), np.float32))
    pairs: Pairs = selection.make_pairs(rule, anchor, own, positive, embedding)
    item = mine.Item(number=0, first_column=0, last_column=1)
    return len(pickle.dumps((0, (item, Found.nothing(pairs))), pickle.HIGHEST_PROTOCOL))


def entry_bytes(shards: int) -> int:
    """Of a shard's pickled manifest entry, with its counts."""
    file = f"triplets-{shards:05d}-of-{shards:05d}.tfrecord"
    entry = {"file": file, "records": 200, "bytes": 1 << 20, "sha256": "0" * 64, "max_pack_triplets": 400}
    counts = [1 << 20] * len(mine.PACK_COUNTS)
    return len(pickle.dumps((shards, entry, counts), pickle.HIGHEST_PROTOCOL))


def makespan(seconds: np.ndarray, workers: int) -> float:
    """Of items handed out in order, each to the worker that is free first."""
    free = [0.0] * workers
    for taken in seconds.tolist():
        heapq.heapreplace(free, free[0] + taken)
    return max(free)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--pick", default="nearest", choices=("nearest", "random"))
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1000, help="of one core each")
    parser.add_argument("--spread", type=float, default=0.3, help="of an item's seconds, standard deviation over mean")
    arguments = parser.parse_args()
    rows, workers = arguments.rows, arguments.workers
    rule = Rule(pick=arguments.pick)
    job_ = mine.Job(run_dir=Path("/"), round=0, rule=rule)
    blocks, shards = deal(rule, rows), shard_sizes(rule, rows)
    items = list(mine.work_items(job_, rows, len(blocks)))
    parts = len(blocks) * (1 - (1 - 1 / len(blocks)) ** selection.COLUMN_BLOCK)  # blocks that a corpus shard deals to
    part_rows = selection.COLUMN_BLOCK / parts
    columns = np.array([min(item.last_column, len(blocks)) - item.first_column for item in items])
    anchors = mine.ITEM_BLOCKS * selection.ANCHOR_BLOCK
    nearest = arguments.pick == "nearest"
    mean = columns * anchors * selection.COLUMN_BLOCK / PAIRS_A_SECOND if nearest else anchors / ANCHORS_A_SECOND
    seconds = mean * np.random.default_rng(0).normal(1, arguments.spread, len(items)).clip(0.1)
    took = makespan(seconds, workers)
    lists = len(items) // (-(-rows // anchors))
    megabyte = 2.0**20
    print(f"{rows:,} rows: {len(blocks):,} column blocks, {len(items):,} work items of `{arguments.pick}`")
    result = [
        Row(what="largest column block over the mean (a key of Gather columns)", value=blocks.max() / blocks.mean(),
            bound=1.2),
        Row(what="largest triplet shard over the mean (a key of Gather triplets)", value=shards.max() / shards.mean(),
            bound=1.2),
        Row(what="largest column block gathered, MB", bound=10,
            value=blocks.max() / part_rows * block_bytes(max(1, round(part_rows)), arguments.dim) / megabyte),
        Row(what="largest triplet shard gathered, MB", value=shards.max() * triplets_bytes(1) / megabyte, bound=10,
            note="each triplet an element of its own"),
        Row(what="largest value: a work item with what was found, MB", value=found_bytes(rule) / megabyte, bound=10),
        Row(what="values merged for one key of Merge, MB", value=lists * found_bytes(rule) / megabyte,
            note=f"{lists} lists of columns, combined two at a time"),
        Row(what="shuffled for the column blocks, GB", note=f"{rows / part_rows:,.0f} elements",
            value=rows / part_rows * block_bytes(max(1, round(part_rows)), arguments.dim) / 2**30),
        Row(what="shuffled for Merge, GB", value=len(items) * found_bytes(rule) / 2**30),
        Row(what="shuffled for the triplets, GB", value=rows * triplets_bytes(1) / 2**30),
        Row(what="the manifest's entries, gathered by one worker, MB", bound=10,
            value=len(shards) * entry_bytes(len(shards)) / megabyte),
        *([Row(what="read by the scan from column blocks, GB",
            value=columns.sum() * (selection.COLUMN_BLOCK * (4 * arguments.dim + 8)) / 2**30)] if nearest else []),
        Row(what="core hours of the scan", value=seconds.sum() / 3600),
        Row(what=f"hours on {workers:,} workers", value=took / 3600),
        Row(what="the same over an even share", value=took * workers / seconds.sum(), bound=1.1),
    ]  # fmt: skip
    for row in result:
        show(row)
    return finish("scale", result)


if __name__ == "__main__":
    sys.exit(main())
