"""A sample of a round's triplets, of bounded size: packs in their order, the same ones each time.

Packs of a shard are in hash order, so that its first ones are as good as any.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.corpus import Split
from pipeline.errors import InputError
from pipeline.files import manifests, tfrecords
from pipeline.files.manifests import Shard
from pipeline.mining.manifest import TripletsManifest

READ_ROWS = 1 << 16  # of packs, counted as often as they are in one
READ_TRIPLETS = 1 << 19
READ_BYTES = 64 << 20
READ_SHARDS = 64
MEND = "Restore it, or remove {} and mine that round again."


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Anchors, each with a row of another class: what tells of classes and labels.

    anchor, negative: int64 [t], rows of the train split. classes: int64 [t, 2], of both. d_an: float32 [t]. rows: how
    many different rows were looked at.
    """

    anchor: np.ndarray
    negative: np.ndarray
    classes: np.ndarray
    d_an: np.ndarray
    rows: int


@dataclass(frozen=True, kw_only=True)
class Sample(Pairs):
    """Triplets of the packs that were read.

    positive: int64 [t]. d_ap: float32 [t]. kind: int64 [t], positions in `rule.KINDS`. packs: how many were
    read.
    """

    positive: np.ndarray
    d_ap: np.ndarray
    kind: np.ndarray
    packs: int

    @property
    def gap(self) -> np.ndarray:
        return self.d_an - self.d_ap


def packs_to_read(manifest: TripletsManifest) -> int:
    """How many packs fit the bounds above, going by the average pack; one at the least."""
    of_all = {
        READ_ROWS: manifest.rows, READ_TRIPLETS: manifest.triplets,
        READ_BYTES: sum(shard.bytes for shard in manifest.shards),
    }  # fmt: skip
    share = min(bound / max(1, total) for bound, total in of_all.items())
    return max(1, min(manifest.packs, math.floor(share * manifest.packs)))


def read_sample(directory: Path, manifest: TripletsManifest, packs: int, split: Split) -> Sample:
    """Reads about that many packs of a mined round, out of shards that lie evenly over all.

    Raises:
      InputError: a shard is missing, damaged or of another size than the manifest says, or there is no triplet.
    """
    shards, each = [shard for shard in manifest.shards if shard.records], manifest.packs
    if packs < each:
        shards = shards[:: math.ceil(len(shards) / min(packs, READ_SHARDS))]
        each = math.ceil(packs / len(shards))
    rows, triplets = [], []
    for shard in shards:
        for pack in _packs(directory / "triplets.json", shard, min(each, shard.records)):
            row = pack["row"]
            rows.append(row)
            sides = [row[pack[side]] for side in ("anchor", "positive", "negative")]
            triplets.append([*sides, pack["d_ap"], pack["d_an"], pack["kind"]])
    if not any(len(anchor) for anchor, *_ in triplets):
        raise InputError(f"the {len(rows):,} packs that were read hold no triplet. Read more of them: --packs N.")
    anchor, positive, negative, d_ap, d_an, kind = map(np.concatenate, zip(*triplets, strict=True))
    return Sample(
        anchor=anchor, positive=positive, negative=negative, d_ap=d_ap, d_an=d_an, kind=kind,
        classes=classes_of(split, anchor, negative), packs=len(rows), rows=len(np.unique(np.concatenate(rows))),
    )  # fmt: skip


def classes_of(split: Split, anchor: np.ndarray, negative: np.ndarray) -> np.ndarray:
    return np.stack([split.class_of(anchor), split.class_of(negative)], axis=1)


def _packs(manifest: Path, shard: Shard, count: int) -> Iterator[dict[str, Any]]:
    """A shard's first packs. What is read whole is compared with the manifest; of another file, its size."""
    path = manifest.parent / shard.file
    if not path.exists():
        raise InputError(f"{path} is missing, triplets.json lists it. {MEND.format(path.parent)}")
    if count == shard.records:
        manifests.check_shard(manifest, shard)
    elif path.stat().st_size != shard.bytes:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes, triplets.json lists {shard.bytes}. {MEND.format(path.parent)}"
        )
    yield from map(tfrecords.parse_example, itertools.islice(tfrecords.read_records(path), count))


def drawn(sample: Sample, count: int, seed: int) -> np.ndarray:
    """int64 [count or fewer]: triplets drawn at random, no anchor twice."""
    order = np.random.default_rng(seed).permutation(len(sample.anchor))
    return order[first_of_each(sample.anchor[order])][:count]


def closest(sample: Sample, count: int) -> np.ndarray:
    """int64 [count or fewer]: triplets with the smallest d_an - d_ap, no pair of classes twice."""
    order = np.lexsort((sample.negative, sample.positive, sample.anchor, sample.gap))
    low, high = np.sort(sample.classes[order], axis=1).T
    return order[first_of_each(low * (high.max() + 1) + high)][:count]


def first_of_each(values: np.ndarray) -> np.ndarray:
    """int64: where each value comes first, ascending."""
    return np.sort(np.unique(values, return_index=True)[1])
