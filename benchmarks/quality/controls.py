"""Packs that no embedding has a part in, in place of a mined round's."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.corpus.corpus import Corpus, Split
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.files.manifests import sha256_of_json
from pipeline.mining.manifest import open_triplets, store_of
from pipeline.packs import spread
from pipeline.packs.packs import PackOptions, Packs
from pipeline.packs.payload import Payload
from pipeline.packs.write import SCOPES, write_packs
from pipeline.triplets.rows import Block, Triplets, to_grid
from pipeline.triplets.rule import KINDS, Rule


def random_packs(run_dir: Path, number: int, seed: int, even: bool) -> None:
    """Replaces a mined round's packs by packs of about as many rows in all, but random ones, no corpus triplets.

    even: every row once, as `spread` deals them when embeddings say nothing. Else of randomly drawn classes, each with
    as many rows as a pack is filled to, or more where there are too few classes to fill it.
    """
    corpus, round = Corpus.open(run_dir), Run(run_dir).round(number)
    manifest = open_triplets(round, corpus)
    rule, packing = manifest.mining.rule(number, manifest.packing.pack_pick), manifest.packing
    store, rng = store_of(round, corpus, manifest), np.random.default_rng([seed, number])
    if even:
        packs = each_row_once(rule, store.split, rng, packing, manifest.rows)
    else:
        packs = random_classes(store.split, rng, packing, manifest.rows)
    payload, shards, counts, cuts = Payload(store.split), [], Counter[str](), len(manifest.shards)
    for n, old in enumerate(manifest.shards):
        some = packs.take(n * len(packs) // cuts, (n + 1) * len(packs) // cuts)
        shard, found = write_packs(round.triplets / old.file, rule, some, False, store, payload)
        shards.append(shard)
        counts.update(found)
    triplets = {scope: {kind: counts[f"{scope}/{kind}"] for kind in KINDS} for scope in SCOPES}
    replaced = replace(
        manifest, triplets=sum(sum(kinds.values()) for kinds in triplets.values()), packs=len(packs),
        rows=len(packs.rows), counts=triplets, shards=shards,
        triplet_digest=sha256_of_json([shard.sha256 for shard in shards]),
    )  # fmt: skip
    manifests.write(round.manifest, replaced)


def random_classes(split: Split, rng: np.random.Generator, packing: PackOptions, rows: int) -> Packs:
    first = split.first_rows
    width = min(len(split.labels), packing.pack_rows // packing.fill)
    fill = packing.pack_rows // width
    packs = round(rows / (fill * width))
    usable = np.flatnonzero(np.diff(first) >= fill)
    classes = [rng.choice(usable, width, replace=False) for _ in range(packs)]
    drawn = [first[c] + rng.choice(first[c + 1] - first[c], fill, replace=False) for c in np.concatenate(classes)]
    return bare_packs(np.concatenate(drawn), np.arange(packs + 1) * fill * width)


def each_row_once(rule: Rule, split: Split, rng: np.random.Generator, packing: PackOptions, rows: int) -> Packs:
    every = np.arange(split.rows)
    block = Block(row=every, embedding=to_grid(rng.standard_normal((len(every), 8)).astype(np.float32)))
    groups = spread.group_rows(rule, block, split.class_of(every), packing.fill)
    place = rng.permutation(len(split.labels))[groups.label]
    dealt, starts = spread.deal(rule, groups, place, packing.pack_rows, packing.fill)
    starts = starts[: np.searchsorted(starts, rows, "right")]
    return bare_packs(dealt[: starts[-1]], starts)


def bare_packs(rows: np.ndarray, starts: np.ndarray) -> Packs:
    """Without corpus triplets."""
    none = np.zeros(len(starts), np.int64)
    return Packs(shard=0, rows=rows, starts=starts, triplets=Triplets.none(), triplet_starts=none)
