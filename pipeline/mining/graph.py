"""The flow of data of a round, files included.

    corpus shards --EmbedCorpus--> embeddings --SelectTriplets--> triplets --+
                                       |                                     +--WritePacks--> TFRecords, triplets.json
                                       +------SpreadRows-----> packs --------+

Embeddings and references travel through shuffles, payload does not: it is read from the corpus when packs are written.
Workers count for themselves: lists of a large round would not fit into the graph that goes to an engine.
`commit` writes triplets.json.
"""

import functools
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsSingleton, PCollection

from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.manifests import Shard, sha256_of_json
from pipeline.mining import steps
from pipeline.mining.manifest import TripletsManifest
from pipeline.mining.mined import collapse, way_out
from pipeline.mining.work import Job, list_items
from pipeline.packs.write import SCOPES
from pipeline.triplets.columns import column_blocks
from pipeline.triplets.rows import Triplets
from pipeline.triplets.rule import KINDS


def build(pipeline: beam.Pipeline, job: Job, anchors: int) -> None:
    """The whole round. anchors: how many there are in the job's anchors.npy; 0 for packs that are spread."""
    embedded = pipeline | EmbedCorpus(job)
    packs, counts = embedded | (SelectTriplets(job, anchors) if anchors else SpreadRows(job))
    (packs, counts) | WritePacks(job)


def _numbers(pipeline: beam.Pipeline, what: str, count: int) -> PCollection[int]:
    """0 to count - 1, on different workers."""
    return (
        pipeline
        | f"Count {what}" >> beam.Create([count])
        | f"List {what}" >> beam.FlatMap(lambda count: iter(range(count)))
        | f"Spread {what}" >> beam.Reshuffle()
    )


def _no_triplets(shard: int) -> tuple[int, Triplets]:
    return shard, Triplets.none()


class EmbedCorpus(beam.PTransform):
    """A pipeline -> numbers of corpus shards, each once its embeddings lie in the round's EmbeddingStore.

    Reads corpus shards and the round's checkpoint. A shard that is embedded already is left as it is.
    """

    def __init__(self, job: Job):
        super().__init__()
        self.job = job

    def expand(self, pipeline: beam.Pipeline) -> PCollection[int]:
        shards = self.job.open_store().files
        return _numbers(pipeline, "corpus shards", shards) | "Embed" >> beam.ParDo(steps.EmbedShard(self.job))


class SelectTriplets(beam.PTransform):
    """Numbers of embedded shards -> (Packs, one for each triplet shard; one Counter of pairs by what became of them).

    Reads embeddings, and the corpus' given triplets if any; writes column blocks and what each scan found into
    the job's work directory.
    """

    def __init__(self, job: Job, anchors: int):
        super().__init__()
        self.job, self.anchors = job, anchors

    def expand(self, embedded: PCollection[int]) -> Any:  # Beam knows no hint for two outputs
        job, pipeline = self.job, embedded.pipeline
        rows = job.open_store().split.rows
        columns = (
            embedded
            | "Deal" >> beam.ParDo(steps.DealColumns(job))  # (column block, part of its Block)
            | "Gather columns" >> beam.GroupByKey()
            | "Write columns" >> beam.ParDo(steps.WriteColumns(job))  # column block
            | "Count columns" >> beam.combiners.Count.Globally()
        )
        chosen = (
            pipeline
            | "Count anchors" >> beam.Create([(self.anchors, column_blocks(rows))])
            | "List work items" >> beam.FlatMapTuple(functools.partial(list_items, job))
            | "Spread items" >> beam.Reshuffle()
            | "Scan" >> beam.ParDo(steps.Scan(job), AsSingleton(columns))  # (item number, (Item, Found))
            | "Merge" >> beam.CombinePerKey(steps.MergeFound())
            | "Choose" >> beam.ParDo(steps.ChooseNegatives(job)).with_outputs(steps.COUNTS, main="main")
        )
        every_shard = _numbers(pipeline, "triplet shards", job.shards(rows)) | "Begin shards" >> beam.Map(_no_triplets)
        triplets, counts = [chosen.main, every_shard], chosen[steps.COUNTS]
        if given := job.open_corpus().manifest.given_triplets:
            parts = _numbers(pipeline, "parts of given triplets", -(-given.records // steps.GIVEN_TRIPLETS))
            count = embedded | "Count embedded" >> beam.combiners.Count.Globally()
            taken = parts | "Take given" >> beam.ParDo(steps.TakeGiven(job), AsSingleton(count)).with_outputs(
                steps.COUNTS, main="main"
            )
            triplets.append(taken.main)
            counts = (counts, taken[steps.COUNTS]) | "Join counts" >> beam.Flatten()
        packs = (
            triplets
            | "Join shards" >> beam.Flatten()
            | "Gather triplets" >> beam.GroupByKey()  # (triplet shard, [Triplets])
            | "Fill packs" >> beam.ParDo(steps.FillPacks(job))
        )
        return packs, counts | "Sum counts" >> beam.CombineGlobally(_sum)


class SpreadRows(beam.PTransform):
    """The same for packs that are spread: nothing is scanned. Writes groups and packs' rows into the work directory."""

    def __init__(self, job: Job):
        super().__init__()
        self.job = job

    def expand(self, embedded: PCollection[int]) -> Any:  # Beam knows no hint for two outputs
        job, pipeline = self.job, embedded.pipeline
        split = job.open_store().split
        count = embedded | "Count embedded" >> beam.combiners.Count.Globally()
        grouped = (
            _numbers(pipeline, "runs of classes", len(steps.class_runs(split)) - 1)
            | "Group" >> beam.ParDo(steps.GroupRows(job), AsSingleton(count))  # number of the run
            | "Count groups" >> beam.combiners.Count.Globally()
        )
        counts = (
            pipeline
            | "One deal" >> beam.Create([None])
            | "Deal groups" >> beam.ParDo(steps.DealGroups(job), AsSingleton(grouped))
        )
        shards = _numbers(pipeline, "triplet shards", job.shards(split.rows))
        return shards | "Take packs" >> beam.ParDo(steps.TakePacks(job), AsSingleton(counts)), counts


class WritePacks(beam.PTransform):
    """(Packs, one for each triplet shard; one Counter) -> nothing: TFRecords are written, then triplets.json.

    Reads payload from the corpus, and embeddings for the triplets inside packs.
    """

    def __init__(self, job: Job):
        super().__init__()
        self.job = job

    def expand(self, found: Any) -> None:
        packs, counts = found
        (
            packs
            | "Write" >> beam.ParDo(steps.WriteShard(self.job))  # (number, Shard, Counter)
            | "Gather entries" >> beam.combiners.ToList()
            | "Commit" >> beam.Map(commit, AsSingleton(counts), self.job)
        )


def _sum(counts: Iterable[Counter[str]]) -> Counter[str]:
    total = Counter[str]()
    for entry in counts:
        total.update(entry)
    return total


def commit(written: list[tuple[int, Shard, Counter[str]]], counts: Counter[str], job: Job) -> None:
    """Writes triplets.json: from here on the round is mined."""
    job.check_newest()
    written, counts = sorted(written, key=lambda entry: entry[0]), counts.copy()  # Beam may give the same ones again
    packed = _sum(entry[2] for entry in written)
    triplets = {scope: {kind: packed[f"{scope}/{kind}"] for kind in KINDS} for scope in SCOPES}
    total = sum(sum(kinds.values()) for kinds in triplets.values())
    if not total:
        raise InputError(_why_none(job, counts, packed))
    shards = [entry[1] for entry in written]
    corpus = job.open_corpus()
    manifest = TripletsManifest(
        round=job.round.number,
        corpus_fingerprint=job.corpus_fingerprint,
        checkpoint_digest=job.checkpoint_digest,
        mining=job.mining,
        packing=job.packing,
        features=corpus.manifest.features,
        triplets=total,
        packs=packed["packs"],
        rows=packed["rows"],
        counts=triplets,
        pairs=counts.pop("pairs", 0),
        fallback=counts.pop("fallback", 0),
        guarded={"corpus": counts.pop("guarded", 0), "pack": packed["guarded"]},
        skipped={"corpus": dict(counts), "pack": {"no_negative_in_pack": packed["skipped"]}},
        shards=shards,
        triplet_digest=sha256_of_json([shard.sha256 for shard in shards]),
        mean_norm=round(job.open_store().mean_norm(), 4),
        embedded_on=job.open_store().machines(),
        versions={name: version(name) for name in ("tensorflow", "keras", "apache-beam", "numpy")},
    )
    manifests.write(job.round.manifest, manifest)


def _why_none(job: Job, counts: Counter[str], packed: Counter[str]) -> str:
    pairs = counts.get("pairs", 0) + packed["skipped"]  # on its way a Counter may have become a dict
    said = f"round {job.round.number} has no triplet, out of {pairs} pairs: {dict(counts)}. "
    if collapsed := collapse(job.open_store().mean_norm()):
        return f"{said}{collapsed} {way_out(job.round.number)}"
    return said + (
        "A larger --margin, other --negatives or weaker guards find more; anchors without a positive need more rows in "
        "their class."
    )
