"""A cell: one arm trained and evaluated on one split of a corpus. Each is run once and kept as a line of JSON."""

import hashlib
import json
import multiprocessing
import os
import platform
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from benchmarks.quality.arms import ARMS, FORWARD, OPPONENTS, InBatch, Mined, Settings
from benchmarks.quality.controls import random_packs
from benchmarks.runs import IN_PROCESS
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import load_network
from pipeline.embedding.store import EmbeddingStore
from pipeline.files.layout import Run
from pipeline.mining.job import mine
from pipeline.mining.manifest import TripletsManifest, open_triplets, store_of
from pipeline.reporting.advice import Signals, signals
from trainer.loop import Schedule, train_newest
from trainer.measures.retrieval import queries_of, retrieval
from trainer.warming import warm_up

HERE = Path(__file__).parent
STORED = HERE.parent.parent / "docs" / "results" / "quality"
CODE = ("pipeline", "trainer", "benchmarks/quality")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """corpus, arm: their keys. budget: passes over the train split, in cost. split: seed of the classes' split, of
    weights and batches. warmup: settings of a mined arm's in-batch part. on: which held-out classes it is measured on.
    share: of the corpus' classes.
    """

    corpus: str
    arm: str
    budget: float
    split: int
    settings: Settings
    warmup: Settings | None = None
    on: Literal["validation", "eval"] = "eval"
    share: float = 1.0

    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of a cell. passes: trained; forwarded: rows that mining embedded; cost: passes and a third of these.
    seconds: of all work; cpu_seconds: of all threads; peak_mb: memory. code: digest of what ran. signals: what the
    embeddings said when they were mined for the first time.
    """

    cell: Cell
    map_at_r: float
    recall_at_1: float
    passes: int
    forwarded: int
    cost: float
    seconds: float
    cpu_seconds: float
    peak_mb: float
    code: str
    date: str
    machine: str
    signals: Signals | None = None


def code() -> str:
    digest, root = hashlib.sha256(), HERE.parent.parent
    for path in sorted(path for folder in CODE for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def run(cell: Cell, corpus: Path) -> Found:
    """Trains in a directory of its own. corpus: the run directory that `corpora.corpus` made."""
    started, arm = time.time(), ARMS[cell.arm]
    with tempfile.TemporaryDirectory(dir=corpus.parent) as scratch:
        run_dir = Path(scratch, "run")
        shutil.copytree(corpus, run_dir, copy_function=os.link)
        rows = Corpus.open(run_dir).split("train").rows
        trained = in_batch if isinstance(arm, InBatch) else mined
        passes, forwarded, number = trained(arm, run_dir, cell, cell.budget * rows)  # type: ignore[operator]
        said = None if isinstance(arm, InBatch) else signals(*store(run_dir, 0))
        measures = evaluated(run_dir, number, cell.on)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Found(
        cell=cell, map_at_r=measures["map_at_r"], recall_at_1=measures["recall_at_1"], passes=passes,
        forwarded=forwarded, cost=passes + forwarded * FORWARD, seconds=round(time.time() - started, 1),
        cpu_seconds=round(used.ru_utime + used.ru_stime, 1), peak_mb=peak_mb(), code=code(),
        date=time.strftime("%Y-%m-%d"), machine=platform.machine(), signals=said,
    )  # fmt: skip


def peak_mb() -> int:
    """Of this process. `ru_maxrss` is kept across execve (getrusage(2)): it may be that of who started this process."""
    [line] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return round(int(line) / 1024)


def in_batch(arm: InBatch, run_dir: Path, cell: Cell, passes: float) -> tuple[int, int, int]:
    """Passes, forward passes of mining, the round whose checkpoint came of it."""
    options = replace(arm.options(cell.settings, passes), seed=cell.split)
    return warm_up(run_dir, options).steps * options.batch_rows, 0, 0


def mined(arm: Mined, run_dir: Path, cell: Cell, budget: float) -> tuple[int, int, int]:
    settings, rows = {**arm.fixed, **cell.settings}, Corpus.open(run_dir).split("train").rows
    warmup, round_passes, epochs = arm.split(settings, budget, rows)
    anchors, forwarded = max(1, round(round_passes / epochs / arm.rows_an_anchor)), 0
    done, _, _ = in_batch(OPPONENTS["semi-hard"], run_dir, replace(cell, settings=cell.warmup or {}), warmup)
    for number in range(settings["rounds"]):
        mining, packing = arm.mining(settings, anchors, cell.split)
        mine(run_dir, mining, packing, IN_PROCESS)
        forwarded += store(run_dir, number)[0].split.rows
        if arm.control:
            random_packs(run_dir, number, cell.split, arm.control == "even")
        training, schedule = arm.training(settings, epochs, cell.split), Schedule(first=0, rounds=settings["rounds"])
        metrics = train_newest(run_dir, training, schedule).metrics
        assert metrics
        done += metrics.image_passes
    return done, forwarded, settings["rounds"]


def store(run_dir: Path, number: int) -> tuple[EmbeddingStore, TripletsManifest]:
    """What a round was mined with, and what came of it."""
    corpus, round = Corpus.open(run_dir), Run(run_dir).round(number)
    manifest = open_triplets(round, corpus)
    return store_of(round, corpus, manifest), manifest


def evaluated(run_dir: Path, number: int, on: str) -> dict[str, float]:
    corpus = Corpus.open(run_dir)
    split, embedder = corpus.split(on), Embedder(load_network(Run(run_dir).round(number).checkpoint), corpus.feature)
    labels = split.class_of(np.arange(split.rows))
    return retrieval(embedder.split(split), labels, queries_of(corpus, split))


# ---- Kept. ----


def stored(corpus: str) -> dict[str, Found]:
    """By Cell.key."""
    path = STORED / f"{corpus}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [msgspec.json.decode(line, type=Found) for line in lines]
    return {one.cell.key(): one for one in found}


def keep(found: Found) -> None:
    STORED.mkdir(parents=True, exist_ok=True)
    with (STORED / f"{found.cell.corpus}.jsonl").open("a", encoding="utf-8") as file:
        file.write(msgspec.json.encode(found, order="sorted").decode() + "\n")


def run_all(cells: Sequence[tuple[Cell, Path]], workers: int) -> Iterator[Found]:
    """Each in a fresh process, so that its peak memory is its own; `workers` at a time, a thread each if several."""
    if workers > 1:
        os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(run, cell, corpus) for cell, corpus in cells}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def missing(cells: Iterable[Cell]) -> list[Cell]:
    """Those that are not stored yet."""
    kept: dict[str, dict[str, Found]] = {}
    return [cell for cell in cells if cell.key() not in kept.setdefault(cell.corpus, stored(cell.corpus))]
