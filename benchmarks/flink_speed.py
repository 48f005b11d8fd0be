"""Two workers on Flink against one: embedding and scanning Fashion-MNIST, each worker with one thread.

    make bench-flink
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import flink
from benchmarks.runs import ingest_source
from benchmarks.table import Row, finish, show
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.mining.manifest import Stats, TripletsManifest
from trainer.first import write_first
from trainer.options import InitOptions

ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
STAGES = {"embed": "embeddings/*/*.npy", "scan": "work/*/found/*.npz"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """rate: files of a stage a second, counted from when every worker has done one."""

    rate: dict[str, float]
    started: float  # seconds until every worker had embedded a shard
    seconds: float
    digest: str


def prepare(fashion_mnist: Path, run: Path) -> None:
    """All 70,000 rows in the train split, and an untrained checkpoint."""
    ingest_source(run, f"fashion_mnist:{fashion_mnist}", validation_share=0.0, eval_share=0.0)
    write_first(run, InitOptions())


def mine(source: Path, run: Path, workers: int) -> Measured:
    shutil.copytree(source, run)
    worker = Path(sys.executable).with_name("triplet-miner-worker")
    environment = json.dumps({"command": str(worker), "env": ONE_THREAD})
    call = ["pipeline.mine", "--run_dir", str(run), "--pick", "nearest", "--positives", "2", "--threads", "1"]
    call += [f"@{flink.ARGS}", f"--environment_config={environment}", f"--parallelism={workers}"]
    round, seen = Run(run).round(0), {stage: [time.monotonic()] for stage in STAGES}
    process = subprocess.Popen([sys.executable, "-m", *call], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None:
        for stage, pattern in STAGES.items():
            there = sum(not path.name.startswith(".") for path in round.path.glob(pattern))
            seen[stage] += [time.monotonic()] * (there + 1 - len(seen[stage]))  # when the n-th file was there
        time.sleep(0.01)
    if process.returncode:
        sys.exit(process.communicate()[0].decode())
    return Measured(
        rate={stage: (len(at) - 1 - workers) / (at[-1] - at[workers]) for stage, at in seen.items()},
        started=seen["embed"][workers] - seen["embed"][0],
        seconds=manifests.read(round.stats, Stats).mining_seconds,
        digest=manifests.read(round.manifest, TripletsManifest).triplet_digest,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flink_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--fashion_mnist", type=Path, required=True)
    parser.add_argument("--libraries", type=Path, required=True, help="Flink's lib directory")
    parser.add_argument("--jar", default="", help="Beam's job server for that Flink (from Maven Central)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        prepare(arguments.fashion_mnist, Path(temporary, "run"))
        try:
            cluster = flink.Cluster(arguments.libraries, flink.job_server_jar(arguments.jar))
            cluster.start()
        except flink.Refused as error:
            print(error, file=sys.stderr)
            return 1
        try:
            runs = {n: mine(Path(temporary, "run"), Path(temporary, f"{n}"), n) for n in (1, 2)}
        finally:
            cluster.stop()
    assert runs[1].digest == runs[2].digest
    rows = []
    for stage in STAGES:
        one, two = runs[1].rate[stage], runs[2].rate[stage]
        note = f"{one:.2f} and {two:.2f} files a second"
        rows.append(Row(what=f"{stage}: two workers of one thread over one", value=two / one, note=note))
    whole = f"{runs[1].seconds:.1f} s and {runs[2].seconds:.1f} s"
    rows.append(Row(what="the whole job", value=runs[1].seconds / runs[2].seconds, note=whole))
    rows += [Row(what=f"seconds until each of {n} worker(s) had embedded a shard", value=runs[n].started) for n in runs]
    for row in rows:
        show(row)
    return finish("flink", rows)


if __name__ == "__main__":
    sys.exit(main())
