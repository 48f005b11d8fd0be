"""What an engine costs, and what a second worker gains: Omniglot and Fashion-MNIST on Flink, Spark and Prism.

    make bench-engines OMNIGLOT=images_background_small1.zip

The engines are on this machine (engines/local.py); their start is not counted.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.omniglot import merged
from benchmarks.runs import ingest_source
from benchmarks.table import Row, finish, paired, show
from engines.local import STARTS, WORKERS, Engine, Refused
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.mining.manifest import TripletsManifest
from trainer.first import write_first
from trainer.options import InitOptions

ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
STAGES = {"embed": "embeddings/*/*.npy", "scan": "work/*/found/*.npz"}
PAIRS = 3
OVER_IN_PROCESS = 3.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """rate: files of a stage a second, counted from when every worker has done one."""

    rate: dict[str, float]
    started: float  # seconds until every worker had embedded a shard
    seconds: float  # of the whole command
    digest: str


def prepare(source: str, run: Path) -> Path:
    """All rows in the train split, and an untrained checkpoint."""
    ingest_source(run, source, validation_share=0.0, eval_share=0.0)
    write_first(run, InitOptions())
    return run


def mine(source: Path, options: list[str], workers: int = 1) -> Measured:
    """Mines a copy of a run directory by the command."""
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(shutil.copytree(source, Path(temporary, "run")))
        round, began = Run(run).round(0), time.monotonic()
        seen = {stage: [began] for stage in STAGES}
        call = ["pipeline.mine", "--run_dir", str(run), "--pick", "nearest", "--positives", "2", "--threads", "1"]
        with open(run / "log", "w") as log:
            process = subprocess.Popen([sys.executable, "-m", *call, *options], stdout=log, stderr=log)
            while process.poll() is None:
                for stage, pattern in STAGES.items():
                    there = sum(not path.name.startswith(".") for path in round.path.glob(pattern))
                    seen[stage] += [time.monotonic()] * (there + 1 - len(seen[stage]))  # when the n-th was there
                time.sleep(0.01)
        seconds = time.monotonic() - began
        if process.returncode:
            sys.exit((run / "log").read_text())
        return Measured(
            rate={
                stage: (len(at) - 1 - workers) / (at[-1] - at[workers]) for stage, at in seen.items()
                if at[workers:-1] and at[-1] > at[workers]  # in a small run all files may come at once
            },
            started=seen["embed"][min(workers, len(seen["embed"]) - 1)] - began,
            seconds=seconds,
            digest=manifests.read(round.manifest, TripletsManifest).triplet_digest,
        )  # fmt: skip


def costs(run: Path, kind: str, state: Path) -> list[Row]:
    """A small job on an engine over the same in one process; how often it starts Python."""
    engine, digests = Engine(state), set[str]()
    try:
        engine.start(kind)
        ratio, there, here = paired(
            lambda: digests.add(mine(run, engine.options).digest), lambda: digests.add(mine(run, []).digest), PAIRS
        )
        starts = engine.starts() / PAIRS
    finally:
        engine.stop()
    assert len(digests) == 1, f"{kind}: other triplets than in one process"
    asked, note = 1 if kind == "prism" else WORKERS, f"{there:.1f} s and {here:.1f} s"
    bound = OVER_IN_PROCESS if kind == "flink" else None
    return [
        Row(what=f"{kind}: mine Omniglot small1, over in process", value=ratio, bound=bound, note=note),
        Row(what=f"{kind}: starts of Python, a worker and job", value=starts / asked, bound=1.0),
    ]


def gains(run: Path, kind: str, state: Path) -> list[Row]:
    """Two workers of one thread over one."""
    runs = {}
    for workers in (1, 2):
        engine = Engine(state)
        try:
            engine.start(kind, workers)
            runs[workers] = mine(run, engine.options, workers)
        finally:
            engine.stop()
    one, two = runs[1], runs[2]
    assert one.digest == two.digest
    rows = [
        Row(
            what=f"{kind}, Fashion-MNIST: two workers over one, {stage}",
            value=two.rate[stage] / one.rate[stage],
            note=f"{two.rate[stage]:.2f} and {one.rate[stage]:.2f} files a second",
        )
        for stage in STAGES
    ]
    note = f"{two.seconds:.1f} s and {one.seconds:.1f} s, of these {two.started:.1f} s and {one.started:.1f} s to begin"
    ratio = one.seconds / two.seconds
    return [*rows, Row(what=f"{kind}, Fashion-MNIST: seconds of one worker over two", value=ratio, note=note)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", required=True, help="images_background_small1.zip, or its folder")
    parser.add_argument("--fashion_mnist", type=Path, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is stopped
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        omniglot = prepare(f"images:{merged([arguments.omniglot], scratch / 'omniglot')}", scratch / "small")
        mnist = prepare(f"fashion_mnist:{arguments.fashion_mnist}", scratch / "large")
        try:
            for kind in STARTS:
                rows += costs(omniglot, kind, scratch / kind)
                show_all(rows[-2:])
            os.environ.update(ONE_THREAD)  # which the workers inherit
            for kind in ("flink", "spark"):
                rows += gains(mnist, kind, scratch / kind)
                show_all(rows[-3:])
        except Refused as error:
            print(error, file=sys.stderr)
            return 1
    return finish("engines", rows)


def show_all(rows: list[Row]) -> None:
    for row in rows:
        show(row)


if __name__ == "__main__":
    sys.exit(main())
