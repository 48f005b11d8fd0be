"""triplets.json: what a mined round holds, how many pairs were skipped and why, what it was mined
with. And reading its packs."""

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import Any, ClassVar

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import Feature
from pipeline.embedding.store import EmbeddingStore
from pipeline.errors import InputError
from pipeline.files import manifests, tfrecords
from pipeline.files.layout import Round, Run
from pipeline.files.manifests import Shard
from pipeline.files.storage import location
from pipeline.mining.options import MiningOptions, embedded_part
from pipeline.packs.packs import PackOptions

METRIC = "squared euclidean of L2-normalised embeddings on a grid of 2^-11"


@dataclass(frozen=True, kw_only=True)
class TripletsManifest:
    """triplets.json, written last: from then on the round is mined.

    counts: triplets by scope and kind. pairs: anchor-positive pairs over the corpus, each valid given triplet being one
    more; fallback: those that took another kind than their first; guarded: pairs by scope on which a guard acted;
    skipped: pairs by scope and reason.
    triplet_digest: SHA-256 over the shards' checksums. mean_norm: of the mean embedding; near 1 all lie together.
    embedded_on: the kinds of machine that the embeddings are from, see `pipeline.embedding.machine`; one, unless an
    engine's workers differ.
    """

    FORMAT: ClassVar[str] = "triplet-miner-triplets/2"
    round: int
    corpus_fingerprint: str
    checkpoint_digest: str
    metric: str = METRIC
    mining: MiningOptions
    packing: PackOptions
    features: dict[str, Feature]
    triplets: int
    packs: int
    rows: int
    counts: dict[str, dict[str, int]]
    pairs: int
    fallback: int
    guarded: dict[str, int]
    skipped: dict[str, dict[str, int]]
    shards: list[Shard]
    triplet_digest: str
    mean_norm: float
    embedded_on: list[str] = default(default_factory=list)
    versions: dict[str, str]

    @property
    def feature(self) -> Feature:
        """The payload."""
        return next(iter(self.features.values()))


@dataclass(frozen=True, kw_only=True)
class Stats:
    """stats.json: what differs from run to run, and is no part of triplets.json. round: None in those of before."""

    FORMAT: ClassVar[str] = "triplet-miner-stats/2"
    mining_seconds: float
    finished: str
    round: int | None = None


def read_manifest(round: Round, corpus: Corpus) -> TripletsManifest:
    """Checked against the corpus; the shards are not looked at."""
    manifest = manifests.read(round.manifest, TripletsManifest, round=round.number)
    for name, found, expected in (
        ("corpus", manifest.corpus_fingerprint, corpus.fingerprint),
        ("metric", manifest.metric, METRIC),
    ):
        if found != expected:
            raise InputError(
                f"{round.manifest} was mined with {name} {found[:60]}, this run directory has {expected[:60]}. "
                f"Remove {round.triplets} and mine that round again."
            )
    return manifest


def store_of(round: Round, corpus: Corpus, manifest: TripletsManifest) -> EmbeddingStore:
    """The embeddings that a round was mined with."""
    part = embedded_part(manifest.mining, manifest.packing)
    return EmbeddingStore(round, corpus, manifest.checkpoint_digest, part)


def open_triplets(round: Round, corpus: Corpus) -> TripletsManifest:
    """The same, and every shard is checked."""
    manifest = read_manifest(round, corpus)
    for shard in manifest.shards:
        manifests.check_shard(round.manifest, shard)
    return manifest


def read_packs(run_dir: Path | str, round: int = 0) -> Iterator[dict[str, Any]]:
    """Every pack of a mined round, in order of its shards.

    A pack is a dict. row int64 [U], id, label and the payload: of its rows, bytes in lists of U (of vectors, float32
    [U * dim]). anchor, positive, negative int64 [T]: positions among them; d_ap, d_an float32 [T]; kind, scope int64
    [T].

    Raises:
      InputError: if nothing is mined there, or a file is not what its manifest says.
    """
    path = location(run_dir) if isinstance(run_dir, str) else run_dir
    mined = Run(path).mined(round)
    for shard in open_triplets(mined, Corpus.open(path)).shards:
        yield from map(tfrecords.parse_example, tfrecords.read_records(mined.triplets / shard.file))
