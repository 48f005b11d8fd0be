"""The job on a real Flink cluster: the same corpus and triplets as in one process, also when a TaskManager dies.

    make test-flink OMNIGLOT=images_background_small1.zip

Starts a cluster of one JobManager and two TaskManagers (benchmarks/flink.py) and stops all of it, whatever happens.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import flink
from pipeline.files.layout import Run

SHARDS = """
import sys
from pipeline.corpus.ingest import ingest
from pipeline.ingest import Options
from pipeline.process.beam import beam_options
from pipeline.process.options import parse_with_beam
options, rest = parse_with_beam(Options, "pipeline.ingest", "", sys.argv[1:])
print(ingest(options.run_dir, options.ingest, beam_options(rest, options), shard_rows=256))
"""
INGEST = ["-c", SHARDS]  # 1,900 rows would be one shard: one worker's work
MINE = ["-m", "pipeline.mine", "--positives", "4", "--threads", "1"]
WORKER = "triplet-miner-worker"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Of the table. found: the corpus fingerprint or the triplet digest. seconds: of the whole command."""

    what: str
    found: str
    seconds: float
    restarts: int
    managers: int  # TaskManagers that ran some of it


class Test:
    def __init__(self, source: Path, scratch: Path, cluster: flink.Cluster):
        self.source, self.scratch, self.cluster = source, scratch, cluster
        self.rows: list[Row] = []

    def start(self, step: list[str], run: Path, engine: bool) -> subprocess.Popen[str]:
        source = ["--source", f"images:{self.source}"] if step is INGEST else []
        call = [sys.executable, *step, "--run_dir", str(run), *source, *([f"@{flink.ARGS}"] if engine else [])]
        return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, what: str, step: list[str], run: Path, engine: bool = True, kill_at: str = "") -> Row:
        """Runs a step to its end. kill_at: a glob; at its first file a TaskManager is killed."""
        before, began = self.jobs() if engine else {}, time.monotonic()
        process = self.start(step, run, engine)
        if kill_at:
            while not list(run.glob(kill_at)):
                assert process.poll() is None, f"{what}: ended before {kill_at} was there:\n{process.communicate()[0]}"
                time.sleep(0.005)
            os.kill(self.cluster.pid(flink.TASK_MANAGERS[0]), signal.SIGKILL)
            assert not self.manifest(step, run).exists(), f"{what}: was over before the kill"
        output = process.communicate()[0]
        assert process.returncode == 0, f"{what}: exit code {process.returncode}\n{output}"
        seconds = time.monotonic() - began
        manifest = json.loads(self.manifest(step, run).read_text())
        found = manifest["fingerprint" if step is INGEST else "triplet_digest"]
        jobs = [job for job in self.jobs() if job not in before] if engine else []
        ran = [self.tasks(job) for job in jobs]
        restarts = max((task["attempt"] for tasks in ran for task in tasks), default=0)
        managers = {task["taskmanager-id"] for tasks in ran for task in tasks}
        row = Row(what=what, found=found, seconds=seconds, restarts=restarts, managers=len(managers))
        self.rows.append(row)
        show(row)
        return row

    def manifest(self, step: list[str], run: Path) -> Path:
        return Run(run).corpus_manifest if step is INGEST else Run(run).round(0).manifest

    def jobs(self) -> dict[str, Any]:
        return {job["jid"]: job for job in self.cluster.ask("/jobs/overview")["jobs"]}

    def tasks(self, job: str) -> list[dict[str, Any]]:
        """Each parallel task's last attempt: its number and where it ran."""
        vertices = self.cluster.ask(f"/jobs/{job}")["vertices"]
        return [task for v in vertices for task in self.cluster.ask(f"/jobs/{job}/vertices/{v['id']}")["subtasks"]]

    def all(self) -> None:
        local = self.scratch / "local"
        corpus = self.run("ingest, in one process", INGEST, local, engine=False)
        made = subprocess.run(
            [sys.executable, "-m", "trainer.init", "--run_dir", str(local)], capture_output=True, text=True
        )
        assert made.returncode == 0, made.stdout + made.stderr
        checkpoint = local / "rounds/0000/checkpoint"
        triplets = self.run("mine, in one process", MINE, local, engine=False)

        def fresh(name: str) -> Path:
            """The corpus and the checkpoint, not mined."""
            run = self.scratch / name
            shutil.copytree(local / "corpus", run / "corpus")
            shutil.copytree(checkpoint, run / "rounds/0000/checkpoint")
            return run

        on_flink = self.run("ingest, on Flink", INGEST, self.scratch / "ingested")
        assert on_flink.found == corpus.found
        shutil.copytree(checkpoint, self.scratch / "ingested/rounds/0000/checkpoint")
        on_flink = self.run("mine, on Flink", MINE, self.scratch / "ingested")
        assert on_flink.found == triplets.found
        assert on_flink.managers == len(flink.TASK_MANAGERS), "one TaskManager did all the work"
        for stage, first in (("embedding", "embeddings/*/*.npy"), ("choosing", "work/*/found/*.npz")):
            killed = self.run(
                f"mine, a TaskManager killed while {stage}", MINE, fresh(stage), kill_at=f"rounds/0000/{first}"
            )
            assert killed.found == triplets.found
            assert killed.restarts, "the job was not restarted"
            self.cluster.start_task_managers()
        killed = self.run(
            "ingest, a TaskManager killed while writing", INGEST, self.scratch / "again", kill_at="corpus/*.tfrecord"
        )
        assert killed.found == corpus.found


def show(row: Row) -> None:
    print(f"{row.what:<46}{row.seconds:>8.1f}{row.managers:>9}{row.restarts:>9}  {row.found[:12]}", flush=True)


@contextmanager
def omniglot(path: Path, scratch: Path) -> Iterator[Path]:
    """The folder of images, out of the zip if it is one."""
    if not path.exists():
        sys.exit(f"OMNIGLOT={path}: not there. It is images_background_small1.zip of github.com/brendenlake/omniglot")
    if path.is_file():
        with zipfile.ZipFile(path) as packed:
            packed.extractall(scratch / "omniglot")
        path = scratch / "omniglot"
    yield path


def workers() -> list[str]:
    """Python workers of this checkout that run."""
    mine = str(Path(sys.executable).with_name(WORKER))
    processes = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True).stdout.splitlines()
    return [line for line in processes if mine in line]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", type=Path, required=True, help="images_background_small1.zip, or its folder")
    parser.add_argument("--libraries", type=Path, required=True, help="Flink's lib directory")
    parser.add_argument("--jar", default="", help="Beam's job server for that Flink (from Maven Central)")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, omniglot(arguments.omniglot, Path(temporary)) as source:
        try:
            cluster = flink.Cluster(arguments.libraries, flink.job_server_jar(arguments.jar))
            cluster.start()
        except flink.Refused as error:
            print(error, file=sys.stderr)
            return 1
        try:
            print(f"Flink {cluster.ask('/config')['flink-version']}, seconds of:")
            print(f"{'':<46}{'all':>8}{'managers':>9}{'restarts':>9}  digest")
            Test(source, Path(temporary), cluster).all()
        finally:
            cluster.stop()
        deadline = time.monotonic() + flink.STOP_SECONDS
        while (left := workers()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, f"workers outlived their TaskManagers: {left}"
    print(f"the same digests in one process, on Flink, and after kills, in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
