"""A corpus, its embeddings and mined rounds made by hand: what tests look at that need files and no command."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import INDEX, SPLITS, CorpusManifest, CorpusShard, Feature, SplitManifest, SplitRule
from pipeline.embedding.store import GIVEN, EmbeddingStore
from pipeline.files import manifests, storage, tfrecords
from pipeline.files.layout import Round, Run
from pipeline.files.manifests import Shard
from pipeline.mining.manifest import TripletsManifest
from pipeline.mining.options import MiningOptions
from pipeline.packs.packs import PackOptions
from pipeline.triplets.rule import KINDS

FEATURES = {
    "image": Feature(kind="image", shape=(None, None, 1), dtype="uint8"),
    "text": Feature(kind="text", shape=(), dtype="string"),
}


def write_corpus(
    run_dir: Path, labels: list[str], payload: list[bytes] | np.ndarray, *, kind: str = "vector",
    groups: list[str | None] | None = None, shard_rows: int = 10,
) -> Corpus:  # fmt: skip
    """A run directory's corpus, all of it in the train split; ids are row-000, row-001 and so on.

    labels: ascending. payload: bytes of each row's image or text, which nothing looks into, or float32 [n, dim].
    """
    assert labels == sorted(labels), "a class is a range of rows"
    vectors = isinstance(payload, np.ndarray)
    feature = Feature(kind="vector", shape=payload.shape[1:], dtype="float32") if vectors else FEATURES[kind]
    records = []
    for row, label in enumerate(labels):
        example = {"id": [b"row-%03d" % row], "label": [label.encode()]}
        example[feature.kind] = payload[row] if vectors else [payload[row]]
        if groups and groups[row] is not None:
            example["group"] = [groups[row].encode()]
        records.append(tfrecords.make_example(example))
    contents = [value.tobytes() for value in payload] if vectors else payload
    index = np.zeros(len(labels), INDEX)
    index["length"] = list(map(len, records))
    index["content"] = [contents.index(value) for value in contents]
    names = sorted(set(groups or []) - {None})
    index["group"] = [names.index(group) if group else -1 for group in groups or [None] * len(labels)]
    starts = range(0, len(labels), shard_rows)
    shards = []
    for number, start in enumerate(starts):
        name, here = f"train-{number:05d}-of-{len(starts):05d}", slice(start, start + shard_rows)
        index["offset"][here] = tfrecords.offsets_of(index["length"][here])
        shard = tfrecords.write_records(Run(run_dir).corpus / f"{name}.tfrecord", records[here])
        path = Run(run_dir).corpus / f"{name}.index.npy"
        storage.save_array(path, index[here])
        told = {"index": path.name, "index_bytes": path.stat().st_size, "index_sha256": storage.sha256_of(path)}
        shards.append(CorpusShard(**vars(shard), **told))
    classes = sorted(set(labels))
    copies = [row for row, first in enumerate(index["content"].tolist()) if first != row]
    train = write_classes(
        Run(run_dir).corpus, "train", classes, [*map(labels.index, classes), len(labels)], copies=len(copies),
        label_conflicts=sum(labels[row] != labels[index["content"][row]] for row in copies), shards=shards,
    )  # fmt: skip
    manifest = CorpusManifest(
        source="by hand", source_stamp=None, features={feature.kind: feature}, grouped=bool(names), rejected=0,
        split_rule=SplitRule(by="class", seed=0, validation_share=0.0, eval_share=0.0),
        splits={"train": train, **{name: write_classes(Run(run_dir).corpus, name, [], [0]) for name in SPLITS[1:]}},
    )  # fmt: skip
    manifest = replace(manifest, fingerprint=manifest.computed_fingerprint())
    manifests.write(Run(run_dir).corpus_manifest, manifest)
    return Corpus.open(run_dir)


def write_classes(
    directory: Path, name: str, labels: list[str], first_rows: list[int], *, copies: int = 0, label_conflicts: int = 0,
    shards: Sequence[CorpusShard] = (),
) -> SplitManifest:  # fmt: skip
    """Writes a split's labels and first_rows. Returns what corpus.json says of the split."""
    paths = directory / f"{name}.labels.jsonl", directory / f"{name}.first_rows.npy"
    manifests.write_json_lines(paths[0], labels)
    storage.save_array(paths[1], np.array(first_rows, np.int64))
    return SplitManifest(
        rows=first_rows[-1], labels=Shard.of(paths[0], len(labels)), first_rows=Shard.of(paths[1], len(first_rows)),
        copies=copies, label_conflicts=label_conflicts, shards=list(shards),
    )  # fmt: skip


def write_embeddings(run_dir: Path, embeddings: np.ndarray, checkpoint_digest: str = "by hand") -> EmbeddingStore:
    """Round 0's embeddings of the train split. embeddings: float32 [rows, dim], on the grid."""
    store = EmbeddingStore(Round(run_dir, 0), Corpus.open(run_dir), checkpoint_digest)
    for number in range(len(store.split.shards)):
        store.write(number, embeddings[slice(*store.split.shard_rows[number : number + 2])], GIVEN)
    return store


def write_round(
    run_dir: Path,
    packs: list[list[tuple]],
    number: int = 0,
    *,
    mining: MiningOptions = MiningOptions(),  # noqa: B008  frozen
    packing: PackOptions = PackOptions(),  # noqa: B008  frozen
    pairs: int = 0,
    no_negative: int = 0,
    shard_packs: int = 4,
) -> TripletsManifest:
    """A mined round. packs: of each its triplets (anchor, positive, negative, d_ap, d_an), rows of the train split.

    Those of spread packs are of the packs' own, all others over the corpus. pairs: over the corpus. no_negative: pairs
    of packs without a triplet.
    """
    round, records, rows, kinds = Run(run_dir).round(number), [], 0, np.zeros(len(KINDS), np.int64)
    spread = packing.packs == "spread"
    for pack in packs:
        columns = np.array(pack, np.float64).reshape(-1, 5).T
        row, places = np.unique(columns[:3].astype(np.int64), return_inverse=True)
        example = {"row": row, **dict(zip(("anchor", "positive", "negative"), places.reshape(3, -1), strict=True))}
        d_ap, d_an = columns[3:].astype(np.float32)
        kind = (d_an <= d_ap).astype(np.int64)
        scope = np.full_like(kind, int(spread))
        records.append(tfrecords.make_example({**example, "d_ap": d_ap, "d_an": d_an, "kind": kind, "scope": scope}))
        rows, kinds = rows + len(row), kinds + np.bincount(kind, minlength=len(KINDS))
    shards = []
    for first in range(0, len(packs), shard_packs):
        path = round.triplets / f"{first}.tfrecord"
        shards.append(tfrecords.write_records(path, records[first : first + shard_packs]))
    counts = dict(zip(KINDS, kinds.tolist(), strict=True))
    none, corpus = dict.fromkeys(KINDS, 0), Corpus.open(run_dir)
    manifest = TripletsManifest(
        round=number, corpus_fingerprint=corpus.fingerprint, checkpoint_digest="by hand", mining=mining,
        packing=packing, features=corpus.manifest.features, triplets=sum(counts.values()), packs=len(packs), rows=rows,
        counts={"corpus": none, "pack": counts} if spread else {"corpus": counts, "pack": none}, pairs=pairs,
        skipped={"corpus": {}, "pack": {"no_negative_in_pack": no_negative}}, guarded={"corpus": 0, "pack": 0},
        fallback=0, shards=shards, triplet_digest="by hand", mean_norm=0.0, versions={"numpy": "1"},
    )  # fmt: skip
    manifests.write(round.manifest, manifest)
    return manifest
