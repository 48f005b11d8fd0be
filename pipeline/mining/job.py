"""One round's mining from start to manifest."""

import functools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.corpus.corpus import Corpus, Split, open_corpus
from pipeline.embedding.network import checkpoint_digest, load_checkpoint
from pipeline.files import manifests, storage
from pipeline.files.errors import InputError
from pipeline.files.layout import Round, Run
from pipeline.mining import graph
from pipeline.mining.manifest import Stats, TripletsManifest, open_triplets
from pipeline.mining.options import MiningOptions
from pipeline.mining.steps import Job, Tiling, class_runs, list_items
from pipeline.packs.packs import PackOptions
from pipeline.packs.write import SCOPES
from pipeline.process import beam
from pipeline.process.commands import log
from pipeline.process.progress import Stage, live
from pipeline.triplets.columns import column_blocks
from pipeline.triplets.draws import row_hashes


@dataclass(frozen=True, kw_only=True)
class Mined:
    """A mined round. already: nothing was to do. Its text is a summary."""

    run_dir: str
    round: int
    already: bool
    triplets: int
    packs: int
    rows: int
    counts: dict[str, dict[str, int]]
    skipped: dict[str, dict[str, int]]
    guarded: dict[str, int]
    triplet_digest: str
    seconds: float

    def __str__(self) -> str:
        lines = [f"round {self.round} is mined already; nothing to do"] if self.already else []
        size = f"{self.packs:,} packs of {self.rows:,} rows"
        took = "" if self.already else f", {self.seconds:.1f} s"
        lines.append(f"round {self.round}: {self.triplets:,} triplets in {size}{took}")
        for scope in SCOPES:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in self.counts[scope].items() if n)
            lines.append(
                f"  {'over the whole corpus' if scope == 'corpus' else 'inside the packs':<22}{kinds or 'none'}"
            )
        skipped = {**self.skipped["corpus"], **self.skipped["pack"]}
        reasons = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in skipped.items() if n)
        lines.append(f"  {'skipped':<22}{reasons or 'none'}")
        if any(self.guarded.values()):
            lines.append(f"  {'guards acted on':<22}{sum(self.guarded.values()):,} pairs")
        lines.append(f"  in {Run(Path(self.run_dir)).round(self.round).triplets}")
        lines.append(f"  next: python -m trainer.train --run_dir {self.run_dir}")
        return "\n".join(lines)


def _mined(run_dir: Path, manifest: TripletsManifest, seconds: float = 0.0, already: bool = False) -> Mined:
    names = ("round", "triplets", "packs", "rows", "counts", "skipped", "guarded", "triplet_digest")
    told = {name: getattr(manifest, name) for name in names}
    return Mined(run_dir=str(run_dir), already=already, seconds=seconds, **told)


def mine(
    run_dir: Path,
    mining: MiningOptions,
    packing: PackOptions,
    options: PipelineOptions,
    threads: int | None = None,
    tiling: Tiling = Tiling(),  # noqa: B008  frozen
) -> Mined:
    """Mines the newest checkpoint's round, unless it is mined.

    Raises:
      InputError: if there is no checkpoint, or if the round was mined with something else.
    """
    started, run, corpus = time.time(), Run(run_dir), open_corpus(run_dir)
    newest = run.newest_checkpoint()
    if newest is None:
        raise InputError(f"{run_dir} has no checkpoint. Make a first one: python -m trainer.init --run_dir {run_dir}")
    job = Job(
        round=Round(run_dir.absolute(), newest.number), mining=mining, packing=packing, threads=threads, tiling=tiling,
        corpus_fingerprint=corpus.fingerprint, checkpoint_digest=checkpoint_digest(load_checkpoint(newest.checkpoint)),
    )  # fmt: skip
    if packing.packs == "spread" and mining.positives > 1:
        raise InputError(f"packs that are spread take no positives; found {mining.positives}. Leave one of both out.")
    split = corpus.split("train")
    if len(split.labels) < 2:
        raise InputError(
            f"{corpus.directory}: {len(split.labels)} class to train on; a negative needs two. Ingest a source with "
            f"two classes or more into a new --run_dir."
        )
    if newest.manifest.exists():
        return _mined(run_dir, _as_asked(job, corpus), already=True)
    _clear_leftovers(job)
    anchors = _draw_anchors(job, split)
    if packing.packs != "spread":
        storage.save_array(job.work / "anchors.npy", anchors)
    with live(*_stages(job, split, len(anchors))):
        build = functools.partial(graph.build, job=job, anchors=0 if packing.packs == "spread" else len(anchors))
        beam.run(options, build)
    _remove_work(job)
    taken, finished = round(time.time() - started, 2), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    manifests.write(job.round.stats, Stats(mining_seconds=taken, finished=finished))
    return _mined(run_dir, manifests.read(job.round.manifest, TripletsManifest), taken)


def _draw_anchors(job: Job, split: Split) -> np.ndarray:
    """int64 [n], ascending: every row of the split, or as many as asked for, those with the lowest hashes."""
    rows = np.arange(split.rows)
    if job.mining.anchors is None or job.mining.anchors >= len(rows):
        return rows
    order = np.argsort(row_hashes(job.rule.key("anchors"), rows), kind="stable")
    return np.sort(order[: job.mining.anchors])


def _stages(job: Job, split: Split, anchors: int) -> list[Stage]:
    """What one sees while the round is mined: files that are there, of those that will be."""

    def stage(name: str, unit: str, total: int, directory: Path, suffix: str) -> Stage:
        return Stage(name=name, unit=unit, total=total, done=lambda: storage.count_files(directory, suffix))

    store, work, blocks = job.open_store(), job.work, column_blocks(split.rows)
    if job.packing.packs == "spread":
        selecting = [stage("group", "runs", len(class_runs(split)) - 1, work / "groups", ".npz")]
    else:
        items = sum(1 for _ in list_items(job, anchors, blocks))
        selecting = [
            stage("columns", "blocks", blocks, work / "columns", ".npz"),
            stage("scan", "work items", items, work / "found", ".npz"),
        ]
    return [
        stage("embed", "shards", len(split.shards), store.directory, ".npy"),
        *selecting,
        stage("write", "shards", job.shards(split.rows), job.round.triplets, ".tfrecord"),
    ]


def _clear_leftovers(job: Job) -> None:
    """Removes what an interrupted run left and a new one does not continue with."""
    storage.remove(job.round.triplets)  # without a manifest these are no triplets
    for name in storage.names(job.work.parent):
        if name != job.work.name:
            storage.remove(job.work.with_name(name))


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
