"""One round's mining from start to manifest."""

import functools
import time
from pathlib import Path

import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.corpus.corpus import Corpus, Split
from pipeline.embedding.machine import machine_kind
from pipeline.embedding.network import load_network
from pipeline.embedding.store import GIVEN
from pipeline.errors import InputError
from pipeline.files import manifests, storage
from pipeline.files.layout import Round, Run
from pipeline.mining import graph
from pipeline.mining.manifest import Stats, TripletsManifest, open_triplets
from pipeline.mining.mined import Mined
from pipeline.mining.options import MiningOptions
from pipeline.mining.steps import class_runs
from pipeline.mining.work import Job, Tiling, list_items
from pipeline.packs.packs import PackOptions
from pipeline.packs.spread import draw_part
from pipeline.process import beam
from pipeline.process.commands import log
from pipeline.process.engines import ENGINES, runner_of
from pipeline.process.progress import Stage, live
from pipeline.triplets.columns import column_blocks
from pipeline.triplets.draws import row_hashes


def mine(
    run_dir: Path,
    mining: MiningOptions,
    packing: PackOptions,
    options: PipelineOptions,
    threads: int | None = None,
    tiling: Tiling = Tiling(),  # noqa: B008  frozen
    scan: str = "auto",
) -> Mined:
    """Mines the newest checkpoint's round, unless it is mined.

    Raises:
      InputError: if there is no checkpoint, or if the round was mined with something else.
    """
    newest = Run(run_dir).newest_checkpoint()
    if newest is None:
        Corpus.open(run_dir)  # if that is missing too, it comes first
        raise InputError(f"{run_dir} has no checkpoint. Make a first one: python -m trainer.init --run_dir {run_dir}")
    digest = load_network(newest.checkpoint).digest()
    return mine_round(newest, digest, mining, packing, options, threads, tiling, scan)


def mine_round(
    round: Round,
    digest: str,
    mining: MiningOptions,
    packing: PackOptions,
    options: PipelineOptions,
    threads: int | None = None,
    tiling: Tiling = Tiling(),  # noqa: B008  frozen
    scan: str = "auto",
    given: np.ndarray | None = None,
) -> Mined:
    """Mines a round, unless it is mined. digest: of its checkpoint, or of `given`: a user's own embeddings of the train
    split, float32 [rows, dim] on the grid.

    Raises:
      InputError: if the round was mined with something else, or `scan` is gpu and there is none.
    """
    started, run_dir, corpus = time.time(), round.run, Corpus.open(round.run)
    job = Job(
        round=Round(run_dir.absolute(), round.number), mining=mining, packing=packing, threads=threads, tiling=tiling,
        corpus_fingerprint=corpus.fingerprint, checkpoint_digest=digest, machine=machine_kind(), scan=scan,
    )  # fmt: skip
    if packing.packs == "spread" and mining.positives > 1:
        raise InputError(f"packs that are spread take no positives; found {mining.positives}. Leave one of both out.")
    split = corpus.split("train")
    if split.classes < 2:
        raise InputError(
            f"{corpus.directory}: {split.classes} class to train on; a negative needs two. Ingest a source with "
            f"two classes or more into a new --run_dir."
        )
    if round.manifest.exists():
        return Mined.of(run_dir, _as_asked(job, corpus), already=True)
    if packing.packs != "spread" and runner_of(options) not in ENGINES:
        job.scans_on_gpu()  # if one is asked for that is not there: before an hour of embedding
    _begin(job)
    anchors = _draw(job, split)
    if given is not None:
        _store(job, given)
    with live(*_stages(job, anchors)):
        beam.run(options, functools.partial(graph.build, job=job, anchors=anchors))
    _remove_work(job)
    taken, finished = float(f"{time.time() - started:.2f}"), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    manifests.write(job.round.stats, Stats(mining_seconds=taken, finished=finished, round=round.number))
    return Mined.of(run_dir, manifests.read(job.round.manifest, TripletsManifest), taken)


def _draw(job: Job, split: Split) -> int:
    """Writes which rows are anchors, those with the lowest hashes if not all are, and returns how many. For packs that
    are spread, which rows are embedded, if a part is asked for, and 0."""
    most = min(job.mining.anchors or split.rows, split.rows)
    if job.packing.packs == "spread":
        if job.mining.anchors:
            part = draw_part(job.rule, split.first_rows, most, job.packing.fill)
            if not len(part):
                raise InputError(f"{split.directory}: no class to train on has two rows, so nothing has a positive.")
            job.open_store().keep_to(part)
        return 0
    rows = np.arange(split.rows)
    if most < len(rows):
        rows = np.sort(np.argsort(row_hashes(job.rule.key("anchors"), rows), kind="stable")[:most])
    storage.save_array(job.work / "anchors.npy", rows)
    return len(rows)


def _store(job: Job, given: np.ndarray) -> None:
    """Writes a user's embeddings of the rows that the round is of."""
    store = job.open_store()
    split = store.split
    for shard in range(store.files):
        if store.made_on(shard) != GIVEN:
            rows = np.arange(*split.shard_rows[shard : shard + 2])
            store.write(shard, given[split.number_of(rows)], GIVEN)


def _stages(job: Job, anchors: int) -> list[Stage]:
    """What one sees while the round is mined: files that are there, of those that will be."""
    store, work = job.open_store(), job.work
    split, blocks = store.split, column_blocks(store.split.rows)
    if job.packing.packs == "spread":
        selecting = [Stage.of_files("group", "runs", len(class_runs(split)) - 1, work / "groups", ".npz")]
    else:
        items = sum(1 for _ in list_items(job, anchors, blocks))
        selecting = [
            Stage.of_files("columns", "blocks", blocks, work / "columns", ".npz"),
            Stage.of_files("scan", "work items", items, work / "found", ".npz"),
        ]
    return [
        Stage.of_files("embed", "shards", store.files, store.directory, ".npy"),
        *selecting,
        Stage.of_files("write", "shards", job.shards(split.rows), job.round.triplets, ".tfrecord"),
    ]


def _begin(job: Job) -> None:
    """Removes what an interrupted run left and a new one does not continue with."""
    for name in storage.names(job.work.parent):
        if name != job.work.name:
            storage.remove(job.work.with_name(name))
    job.begin()  # from here on an older job writes no triplets
    storage.remove(job.round.triplets)  # without a manifest these are no triplets


def _as_asked(job: Job, corpus: Corpus) -> TripletsManifest:
    """The manifest of a round that is mined already. Raises InputError if it was mined from something else."""
    manifest = open_triplets(job.round, corpus)
    asked = {"checkpoint": job.checkpoint_digest[:12], **vars(job.mining), **vars(job.packing)}
    held = {"checkpoint": manifest.checkpoint_digest[:12], **vars(manifest.mining), **vars(manifest.packing)}
    for name, expected in asked.items():
        if held[name] != expected:
            raise InputError(
                f"round {job.round.number} is mined already with {name} {held[name]}, asked for {expected}. Train it, "
                f"or remove {job.round.triplets} to mine it again."
            )
    _remove_work(job)  # if the run that mined was killed just then
    return manifest


def _remove_work(job: Job) -> None:
    """The round is mined: what a disk does not let go of is in nobody's way."""
    try:
        storage.remove(job.work.parent)
    except OSError as error:
        log.warning("%s stays: %s", job.work.parent, error)
