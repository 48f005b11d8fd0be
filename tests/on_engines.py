"""The job on Flink, Spark and Prism: the same corpus and triplets as in one process, also when a worker is killed.

    make test-engines OMNIGLOT=images_background_small1.zip

Starts each engine (engines/local.py), stops it whatever happens, and looks for what it left.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.omniglot import merged
from engines.local import STARTS, WORKERS, Engine, Refused, get
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
MINE = ["-m", "pipeline.mine", "--threads", "1"]
PACKS = {
    "nearest": ["--pick", "nearest", "--positives", "4"],
    "random": ["--pick", "random", "--positives", "4"],
    "spread": ["--packs", "spread", "--pack_rows", "256"],
}
TWO_PROCESSES = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
OVER = {"FINISHED", "FAILED", "CANCELED"}
STOP_SECONDS = 20.0
MARK = "TRIPLET_ENGINES_TEST"  # a variable that every process of this run inherits


class Trial:
    """Runs steps by some options of Beam and compares what they leave with `expected`, by the step's name."""

    def __init__(self, kind: str, options: list[str], source: Path, scratch: Path, expected: dict[str, str]):
        self.kind, self.options, self.source, self.scratch, self.expected = kind, options, source, scratch, expected
        self.wrong: list[str] = []

    def run(self, what: str, step: list[str], run: Path, name: str = "", interrupt: Callable[..., None] | None = None):
        """A step to its end. name: of what it must be equal to. interrupt: called once the step has begun."""
        began = time.monotonic()
        process = self.start(step, run)
        if interrupt:
            interrupt(process)
        process.communicate()
        if process.returncode and interrupt and self.kind == "prism":  # it gives a job up with its worker
            what += ", run again"
            process = self.start(step, run)
            process.communicate()
        log = (run.with_name(f"{run.name}.log")).read_text()
        if process.returncode:
            self.row(what, time.monotonic() - began, False, f"exit code {process.returncode}:\n{log}")
            return
        found = self.found(step, run)
        self.row(what, time.monotonic() - began, found == self.expected.setdefault(name or what, found), found[:12])

    def start(self, step: list[str], run: Path) -> subprocess.Popen[str]:
        source = ["--source", f"images:{self.source}"] if step[1] is SHARDS else []
        call = [sys.executable, *step, "--run_dir", str(run), *source, *self.options]
        log = open(run.with_name(f"{run.name}.log"), "w")
        return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=log, text=True)

    def found(self, step: list[str], run: Path) -> str:
        """The corpus fingerprint or the triplet digest."""
        if step[1] is SHARDS:
            return str(json.loads(Run(run).corpus_manifest.read_text())["fingerprint"])
        return str(json.loads(Run(run).round(0).manifest.read_text())["triplet_digest"])

    def row(self, what: str, seconds: float, right: bool, found: str) -> None:
        print(f"{self.kind:<10}{what:<46}{seconds:>7.1f}  {'ok' if right else 'WRONG':<7}{found}", flush=True)
        if not right:
            self.wrong.append(f"{self.kind}, {what}: {found}")

    def fresh(self, name: str) -> Path:
        """A run directory with the corpus and the checkpoint, not mined."""
        run = self.scratch / self.kind / name
        for part in ("corpus", "rounds/0000/checkpoint"):
            shutil.copytree(self.scratch / "local" / part, run / part)
        return run


def everything(trial: Trial, engine: Engine) -> None:
    """What each engine must do."""
    (trial.scratch / trial.kind).mkdir()
    trial.run("ingest", INGEST, trial.scratch / trial.kind / "ingested")
    before = engine.starts()
    for name, packs in PACKS.items():
        trial.run(f"mine, {name}", [*MINE, *packs], trial.fresh(name))
    workers = 1 if trial.kind == "prism" else WORKERS
    starts = (engine.starts() - before) / len(PACKS) / workers
    trial.row("mine: starts of Python, a worker and job", starts, starts == 1, f"{workers} worker(s)")

    for stage, step, glob, name in (
        ("mine, killed while embedding", MINE, "rounds/0000/embeddings/*/*.npy", "mine, nearest"),
        ("mine, killed while choosing", MINE, "rounds/0000/work/*/found/*.npz", "mine, nearest"),
        ("ingest, killed while writing", INGEST, "corpus*/*.tfrecord", "ingest"),
    ):
        place = stage.replace(" ", "-")
        run = trial.fresh(place) if step is MINE else trial.scratch / trial.kind / place
        step = [*MINE, *PACKS["nearest"]] if step is MINE else step
        trial.run(stage, step, run, name, lambda process, run=run, glob=glob: killed(trial, engine, process, run, glob))
        if trial.kind == "flink" and step is not INGEST:  # whose last shards the other one may have been writing
            assert restarted(engine), f"{stage}: nothing was begun again"
    corrupt(trial)
    stopped(trial, engine)


def wait_for(process: subprocess.Popen[str], run: Path, glob: str) -> None:
    while not list(run.glob(glob)):
        assert process.poll() is None, f"{run}: ended before {glob} was there"
        time.sleep(0.005)


def killed(trial: Trial, engine: Engine, process: subprocess.Popen[str], run: Path, glob: str) -> None:
    """Kills a worker as soon as a file is there: a TaskManager, an executor, or what Prism runs Python in."""
    wait_for(process, run, glob)
    victim = {
        "flink": lambda: psutil.Process(engine.pid("worker-0")),
        "spark": lambda: next(child for child in engine.session("worker-0") if child.pid != engine.pid("worker-0")),
        "prism": lambda: engine.workers()[0],
    }[trial.kind]()
    victim.kill()
    assert process.poll() is None, f"{run}: was over before the kill"
    process.wait()
    if trial.kind == "flink":
        engine.again("worker-0")


def restarted(engine: Engine) -> bool:
    """Whether a task of Flink's newest job was tried more than once."""
    newest = max(get(f"{engine.web}/jobs/overview")["jobs"], key=lambda job: job["start-time"])["jid"]
    stages = get(f"{engine.web}/jobs/{newest}")["vertices"]
    tasks = [get(f"{engine.web}/jobs/{newest}/vertices/{stage['id']}")["subtasks"] for stage in stages]
    return any(task["attempt"] for stage in tasks for task in stage)


def corrupt(trial: Trial) -> None:
    """A flipped bit in a shard of the corpus: exit code 4, and one line of ours, last."""
    run, began = trial.fresh("corrupt"), time.monotonic()
    shard = sorted(Run(run).corpus.glob("train-*.tfrecord"))[1]
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    process = trial.start(MINE, run)
    process.wait()
    last = run.with_name("corrupt.log").read_text().rstrip().rpartition("\n")[2]
    right = process.returncode == 4 and re.search(rf"ERROR {shard} is not what .* make {shard.parent} again\.$", last)
    trial.row("mine, a corrupt shard", time.monotonic() - began, bool(right), f"exit code {process.returncode}: {last}")


def stopped(trial: Trial, engine: Engine) -> None:
    """SIGTERM: the command ends by it, and so does the job."""
    run = trial.fresh("stopped")
    process = trial.start([*MINE, *PACKS["nearest"]], run)
    wait_for(process, run, "rounds/0000/embeddings/*/*.npy")
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code = process.wait()
    while at_work(trial.kind, engine) and time.monotonic() < began + 3 * STOP_SECONDS:
        time.sleep(0.1)
    seconds = time.monotonic() - began
    mined = Run(run).round(0).manifest.exists()
    right = code == -signal.SIGTERM and seconds <= STOP_SECONDS and not mined
    found = f"signal {-code}, the job was over in {seconds:.1f} s{', and done' * mined}"
    trial.row("mine, stopped by SIGTERM", seconds, right, found)


def at_work(kind: str, engine: Engine) -> bool:
    """Whether a job is in no terminal state. Prism is not asked: it stops a job's Python with it."""
    if kind == "flink":
        return any(job["state"] not in OVER for job in get(f"{engine.web}/jobs/overview")["jobs"])
    return bool(get(f"{engine.web}/json/")["activeapps"] if kind == "spark" else engine.workers())


def left(mark: str) -> list[str]:
    """Processes of this run, wherever they went, but this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                found.append(" ".join([str(process.pid), *process.cmdline()])[:120])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", required=True, help="images_background_small1.zip, or its folder")
    parser.add_argument("--engine", nargs="+", choices=list(STARTS), default=list(STARTS), help="which of them")
    arguments = parser.parse_args()
    os.environ[MARK] = mark = uuid.uuid4().hex
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is stopped
    began, expected, wrong = time.monotonic(), {}, []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        source = merged([arguments.omniglot], scratch / "omniglot")
        print(f"{'':<56}{'seconds':>7}")
        local = Trial("local", [], source, scratch, expected)
        local.run("ingest", INGEST, scratch / "local")
        init = [sys.executable, "-m", "trainer.init", "--run_dir", str(scratch / "local")]
        subprocess.run(init, check=True, capture_output=True)
        for name, packs in PACKS.items():
            local.run(f"mine, {name}", [*MINE, *packs], local.fresh(name))
        two = Trial("two", TWO_PROCESSES, source, scratch, expected)
        for name, packs in PACKS.items():
            two.run(f"mine, {name}", [*MINE, *packs], two.fresh(name))
        wrong += local.wrong + two.wrong
        for kind in arguments.engine:
            engine = Engine(scratch / f"engine-{kind}")
            try:
                engine.start(kind)
                trial = Trial(kind, engine.options, source, scratch, expected)
                everything(trial, engine)
            except Refused as error:
                print(error, file=sys.stderr)
                return 1
            finally:
                engine.stop()
            remain = left(mark)
            trial.row("processes left", len(remain), not remain, "; ".join(remain))
            wrong += trial.wrong
    print("\n".join(wrong) or f"all equal, in {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
