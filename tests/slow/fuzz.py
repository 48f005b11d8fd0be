"""Random damage to every kind of file of a run directory, and then a command that reads it.

    make test-faults

A file is cut, a bit of it is flipped, two parts of it are exchanged, or it is exchanged for another of its kind. The
command must refuse it in one line with exit code 4, or end with the same result as undisturbed. It must not print a
traceback, crash, hang or end with another result.

Each command is a child of this process, which has imported all that a command imports (7 s) and has started nothing.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.process import commands

FORK = multiprocessing.get_context("fork")
HANGS = 60  # seconds
AT_ONCE = 2
IMPORTED = (
    "pipeline.corpus.ingest", "pipeline.embedding.export", "pipeline.mining.export", "pipeline.reporting.inspection",
    "trainer.rounds", "sklearn.linear_model", "sklearn.pipeline", "sklearn.preprocessing", "sklearn.datasets",
)  # fmt: skip
RECIPE = """
[warmup]
steps = 3
[mining]
margin = 1.0
[packing]
packs = "spread"
pack_rows = 32
fill = 2
[train]
memory_rows = 10000
"""

# ---- Run directories to damage. ----


def in_child(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a function in a child, so that no thread is started here, without what it prints."""

    def quietly() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        function(*arguments)

    process = FORK.Process(target=quietly)
    process.start()
    process.join()
    assert process.exitcode == 0, f"{function.__name__} {arguments}: exit {process.exitcode}"


def call(module: str, *arguments: object) -> None:
    assert importlib.import_module(module).main([*map(str, arguments)]) == 0


def ingest_digits(run: Path) -> None:
    """600 digits in several shards a split."""
    from sklearn.datasets import load_digits

    from pipeline.corpus.ingest import ingest
    from pipeline.corpus.options import IngestOptions
    from pipeline.process.beam import in_process

    digits, path = load_digits(), run.parent.parent / "digits.npz"
    np.savez(path, images=digits.images[:600].astype(np.uint8) * 15, labels=digits.target[:600].astype(str))
    ingest(run, IngestOptions(source=(f"arrays:{path}",)), in_process(), shard_rows=150)


def ingest_pairs(run: Path) -> None:
    """Texts in pairs with negatives, which make given.npy."""
    rng, path = random.Random(0), run.parent.parent / "pairs.jsonl"
    words = [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "te") for b in ("ban", "dor", "fis", "gul")]
    pairs = [[" ".join(rng.choices(words, k=4)) for _ in range(4)] for _ in range(60)]
    lines = [json.dumps({"query": q, "pos": [p], "neg": [n, m]}) for q, p, n, m in pairs]
    path.write_text("\n".join(lines))
    call("pipeline.ingest", "--run_dir", run, "--source", f"jsonl:{path}", "--validation_share", 0, "--eval_share", 0)


def stop_training(run: Path) -> None:
    """Trains three steps; then comes a SIGTERM, and the state is saved."""
    import keras

    from trainer.loop import train_newest
    from trainer.options import TrainOptions

    def stop(batch: int, logs: Any) -> None:
        if batch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    stops = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    train_newest(run, TrainOptions(memory_rows=200), callbacks=[stops])


def stop_warmup(run: Path) -> None:
    """Warms up until the state was saved once; then comes a SIGTERM, and it is saved again."""
    from trainer.options import WarmupOptions
    from trainer.warming import warm_up

    def look(*_: Any) -> None:
        if (run / "rounds/0000/train/warmup.npz").exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    warm_up(run, WarmupOptions(steps=60), save_seconds=0.0)


class Bases:
    """Run directories as commands find them, each made once."""

    def __init__(self, scratch: Path):
        self.scratch = scratch

    def __getitem__(self, name: str) -> Path:
        """The directory that holds `run`."""
        place = self.scratch / name
        if not place.exists():
            before, *steps = MADE[name]
            if before:
                shutil.copytree(self[before], place)
            else:
                place.mkdir()
            for step in steps:
                in_child(step, place / "run")
        return place


def _mine(run: Path) -> None:
    call("pipeline.mine", "--run_dir", run, "--positives", 10, "--margin", 1)


def _rounds(run: Path) -> None:
    recipe = run.parent.parent / "recipe.toml"
    recipe.write_text(RECIPE)
    call("pipeline.rounds", "--run_dir", run, "--rounds", 2, "--recipe", recipe)
    call("trainer.evaluate", "--run_dir", run, "--round", 0, 1, 2, "--retrieval_only")


MADE: dict[str, tuple[Any, ...]] = {
    "corpus": (None, ingest_digits),
    "rounds": ("corpus", _rounds),
    "mined": ("rounds", _mine),
    "embedded": ("mined", lambda run: shutil.rmtree(run / "rounds/0002/triplets")),
    "stopped": ("mined", stop_training),
    "warming": ("corpus", lambda run: call("trainer.init", "--run_dir", run), stop_warmup),
    "given": (None, ingest_pairs, lambda run: call("trainer.init", "--run_dir", run)),
}

# ---- Commands. ----


@dataclass(frozen=True, kw_only=True)
class Command:
    """base: of MADE. call: `{run}` stands for the run directory, `{place}` for where that lies, `{sources}` for where
    all was made from. reads: patterns of files, each as likely as the others. makes: patterns of the files that are its
    result, beside what it prints.
    """

    base: str
    call: str
    reads: tuple[str, ...]
    makes: tuple[str, ...] = ()


CORPUS = ("corpus/corpus.json", "corpus/train*.tfrecord", "corpus/train*.npy", "corpus/train.labels.jsonl")
EVAL = ("corpus/corpus.json", "corpus/eval*.tfrecord", "corpus/eval*.npy", "corpus/eval.labels.jsonl")
STATE = ("rounds/*/checkpoint/model.keras", "rounds/*/checkpoint/model.sha256", "rounds/*/checkpoint/optimizer.npz")
KEPT = ("rounds/*/embeddings/*/*.npy", "rounds/*/embeddings/*/*.sha256")
MINED = ("rounds/*/triplets/*.tfrecord", "rounds/*/triplets/triplets.json")
TOLD = ("rounds/*/train/metrics.json", "rounds/*/stats.json", "rounds/*/evaluation-*.json", "baselines-*.json")
MINES = ("rounds/0002/triplets/*",)
TRAINS = ("rounds/0002/train/metrics.json", "rounds/0003/checkpoint/optimizer.npz")
MINE = "pipeline.mine --run_dir {run} --margin 1 --positives 10 --json"
TRAIN = "trainer.train --run_dir {run} --memory_rows 200 --json"
ROUNDS = "pipeline.rounds --run_dir {run} --recipe {sources}/recipe.toml --json --rounds"

COMMANDS = {
    "ingest again": Command(
        base="corpus", call="pipeline.ingest --run_dir {run} --source arrays:{sources}/digits.npz --json",
        reads=("corpus/corpus.json",),
    ),
    "init again": Command(base="rounds", call="trainer.init --run_dir {run} --json", reads=(CORPUS[0], *STATE[:2])),
    "mine": Command(base="rounds", call=MINE, reads=(*CORPUS, *STATE[:2]), makes=MINES),
    "mine, embedded": Command(base="embedded", call=MINE, reads=(*CORPUS, *STATE[:2], *KEPT), makes=MINES),
    "mine again": Command(base="mined", call=MINE, reads=(CORPUS[0], *STATE[:2], *MINED)),
    "mine, given": Command(
        base="given", call="pipeline.mine --run_dir {run} --json",
        reads=(*CORPUS, "corpus/given.npy", *STATE[:2]), makes=("rounds/0000/triplets/*",),
    ),
    "warmup": Command(
        base="warming", call="trainer.warmup --run_dir {run} --steps 60 --json",
        reads=(*CORPUS, *STATE[:2], "rounds/0000/train/warmup.npz"),
        makes=("rounds/0000/train/warmup.json", "rounds/0000/checkpoint/optimizer.npz"),
    ),
    "train": Command(
        base="mined", call=TRAIN, reads=(*CORPUS, *STATE, *KEPT, *MINED, "rounds/*/train/metrics.json"), makes=TRAINS
    ),
    "train, stopped": Command(
        base="stopped", call=TRAIN, reads=(*STATE, *MINED, "rounds/0002/train/state.npz"), makes=TRAINS
    ),
    "evaluate": Command(
        base="rounds", call="trainer.evaluate --run_dir {run} --round 1 best --json",
        reads=(*EVAL, *STATE[:2], "best/best.json", "baselines-eval.json"), makes=("rounds/*/evaluation-eval.json",),
    ),
    "rounds again": Command(
        base="rounds", call=f"{ROUNDS} 2", reads=("plan.json", "best/best.json", *TOLD, MINED[1], CORPUS[0]),
        makes=("best/best.json", "best/model.sha256", "index.html"),
    ),
    "rounds, one more": Command(
        base="rounds", call=f"{ROUNDS} 3", reads=(*CORPUS, *EVAL, "plan.json", *STATE, *TOLD, MINED[1]),
        makes=("best/best.json", "plan.json", "rounds/0003/evaluation-*.json", *MINES, *TRAINS),
    ),
    "report": Command(
        base="rounds", call="pipeline.report --run_dir {run} --json", reads=(*CORPUS, *KEPT, *MINED, *TOLD),
        makes=("index.html", "rounds/*/report.html", "rounds/*/suspected-labels.tsv"),
    ),
    "embed": Command(
        base="rounds", call="pipeline.embed --run_dir {run} --out {place}/out.npz --json",
        reads=(CORPUS[0], "corpus/*.tfrecord", "corpus/*.npy", *STATE[:2]), makes=("../out.npz",),
    ),
    "embed, best": Command(
        base="rounds", call="pipeline.embed --run_dir {run} --out {place}/out.npz --round best --split eval",
        reads=("best/model.keras", "best/model.sha256", *EVAL), makes=("../out.npz",),
    ),
    "verify": Command(base="mined", call="pipeline.records verify {run}", reads=(*CORPUS, *EVAL[1:], *MINED)),
    "export": Command(
        base="mined", call="pipeline.records export {run} --to {place}/out.jsonl", reads=(CORPUS[0], *MINED),
        makes=("../out.jsonl",),
    ),
}


class Child:
    """A command that runs, in a folder of its own."""

    def __init__(self, place: Path, command: Command):
        self.place, self.command = place, command
        where = {"run": place / "run", "place": place, "sources": place.parent / "bases"}
        module, *arguments = command.call.format(**where).split()
        self.process: ForkProcess = FORK.Process(target=self._become, args=(module, arguments))
        self.started = time.monotonic()
        self.process.start()

    def _become(self, module: str, arguments: list[str]) -> None:
        os.setsid()
        for number, name in enumerate((os.devnull, self.place / "stdout", self.place / "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
        sys.argv = [module, *arguments]
        commands.run(importlib.import_module(module).main)

    def hangs(self) -> bool:
        return self.process.is_alive() and time.monotonic() - self.started > HANGS

    def said(self, name: str) -> str:
        return (self.place / name).read_text(errors="replace")

    def outcome(self) -> dict[str, Any]:
        """What the command printed, and its files, by name; without times and places."""
        run = self.place / "run"
        files = sorted(path for pattern in self.command.makes for path in run.glob(pattern))
        assert files or not self.command.makes, "no result"
        found = {os.path.relpath(path, run): path.read_bytes() for path in files}
        found["stdout"] = self.said("stdout").encode()
        return {name: self._content(name, value) for name, value in found.items()}

    def _content(self, name: str, value: bytes) -> Any:
        if name.endswith(".npz"):
            with np.load(self.place / "run" / name) as arrays:
                return {key: (str(arrays[key].dtype), arrays[key].tobytes()) for key in arrays.files}
        value = value.replace(str(self.place).encode(), b"PLACE")
        if name.endswith(".json") or (name == "stdout" and "--json" in self.command.call):
            return _without_times(json.loads(value))
        return value


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        timed = {name for name in value if "seconds" in name or name in ("finished", "checksum")}
        return {name: _without_times(value[name]) for name in value.keys() - timed}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


# ---- Damage. ----


def cut(path: Path, rng: random.Random, _: Path) -> str:
    size = rng.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"cut to {size} bytes"


def flip(path: Path, rng: random.Random, _: Path) -> str:
    data, bit = bytearray(path.read_bytes()), rng.randrange(8 * path.stat().st_size)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit % 8} of byte {bit // 8} flipped"


def swap(path: Path, rng: random.Random, _: Path) -> str:
    """Exchanges two parts of a file, of one length."""
    data = path.read_bytes()
    size = rng.choice([n for n in (1, 4, 16, 64, 1024) if 2 * n <= len(data)])
    first = rng.randrange(len(data) - 2 * size + 1)
    second = rng.randrange(first + size, len(data) - size + 1)
    parts = [data[:first], data[second : second + size], data[first + size : second], data[first : first + size]]
    path.write_bytes(b"".join([*parts, data[second + size :]]))
    return f"{size} bytes from {first} and from {second} exchanged"


def exchange(path: Path, rng: random.Random, run: Path) -> str:
    """Exchanges a file for another of the same kind, in whichever folder."""
    others = [other for other in sorted(run.rglob("*")) if _kind(other) == _kind(path) and other != path]
    other = rng.choice(others)
    between = path.with_name("between")
    path.rename(between)
    other.rename(path)
    between.rename(other)
    return f"exchanged for {other.relative_to(run)}"


def _kind(path: Path) -> str:
    return re.sub(r"\d+|train|validation|eval", "", path.name)


DAMAGE = (cut, flip, swap, exchange)


def damage(run: Path, command: Command, rng: random.Random) -> tuple[str, str]:
    """Damages one of the files that a command reads. Returns its name and what was done."""
    while True:
        path = rng.choice(sorted(run.glob(rng.choice(command.reads))))
        before = path.read_bytes()
        try:
            done = rng.choice(DAMAGE)(path, rng, run)
        except (IndexError, ValueError):  # it is too small, or the only one of its kind
            continue
        if path.read_bytes() != before:
            return str(path.relative_to(run)), done


# ---- Pairs of a file and a command. ----


@dataclass(frozen=True, kw_only=True)
class Pair:
    number: int
    command: str
    child: Child
    file: str
    done: str

    def verdict(self, expected: dict[str, dict[str, Any]]) -> str:
        """refused, same; or what is wrong."""
        code, said = self.child.process.exitcode, self.child.said("stderr")
        if code is None:
            return "HANGS"
        if code < 0:
            return f"CRASHES: {signal.Signals(-code).name}"
        if "Traceback" in said:
            return "TRACEBACK"
        beside = {path.name for path in self.child.place.iterdir()} - BESIDE
        if beside:
            return f"WRITES BESIDE the run directory: {', '.join(beside)}"
        if code == 4:
            return "refused"
        if code:
            return f"EXIT {code}"
        outcome, right = self.child.outcome(), expected[self.command]
        differs = [name for name in outcome.keys() | right.keys() if outcome.get(name) != right.get(name)]
        return f"DIFFERS: {', '.join(sorted(differs))}" if differs else "same"


BESIDE = {"run", "stdout", "stderr", "out.npz", "out.jsonl"}


def start(number: int, seed: int, bases: Bases, scratch: Path) -> Pair:
    """The number-th pair of a seed: each is drawn by itself."""
    rng = random.Random(f"{seed}/{number}")
    name = list(COMMANDS)[number % len(COMMANDS)]
    place = scratch / str(number)
    shutil.copytree(bases[COMMANDS[name].base], place)
    file, done = damage(place / "run", COMMANDS[name], rng)
    return Pair(number=number, command=name, child=Child(place, COMMANDS[name]), file=file, done=done)


def pairs(numbers: list[int], seed: int, bases: Bases, scratch: Path) -> Iterator[Pair]:
    """Runs them, AT_ONCE at a time; gives each when it has ended or is hanging."""
    running: list[Pair] = []
    numbers = numbers[::-1]
    while numbers or running:
        while numbers and len(running) < AT_ONCE:
            running.append(start(numbers.pop(), seed, bases, scratch))
        wait([pair.child.process.sentinel for pair in running], timeout=1)
        for pair in [pair for pair in running if not pair.child.process.is_alive() or pair.child.hangs()]:
            running.remove(pair)
            yield pair
            if pair.child.process.is_alive():
                os.killpg(pair.child.process.pid, signal.SIGKILL)
            pair.child.process.join()
            shutil.rmtree(pair.child.place)


def undisturbed(bases: Bases, scratch: Path, names: set[str]) -> dict[str, dict[str, Any]]:
    """What each command comes to, twice the same."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(names):
        outcomes = []
        for again in range(2):
            place = scratch / f"undisturbed-{len(found)}-{again}"
            shutil.copytree(bases[COMMANDS[name].base], place)
            child = Child(place, COMMANDS[name])
            child.process.join()
            assert child.process.exitcode == 0, f"{name} undisturbed: {child.said('stderr')}"
            outcomes.append(child.outcome())
        first, second = outcomes
        assert first == second, f"{name} differs undisturbed: {[n for n in first if first[n] != second.get(n)]}"
        found[name] = first
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=510)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of pairs to run again, with all that they say")
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for module in IMPORTED:
        importlib.import_module(module)
    numbers = arguments.only or list(range(arguments.pairs))
    names = {list(COMMANDS)[number % len(COMMANDS)] for number in numbers}
    verdicts: dict[str, Counter[str]] = {name: Counter() for name in COMMANDS if name in names}
    with tempfile.TemporaryDirectory() as directory:
        scratch, began = Path(directory), time.monotonic()
        bases = Bases(scratch / "bases")
        bases.scratch.mkdir()
        expected = undisturbed(bases, scratch, names)
        print(f"{time.monotonic() - began:.0f} s to make run directories and results to compare with", flush=True)
        for pair in pairs(numbers, arguments.seed, bases, scratch):
            verdict = pair.verdict(expected)
            kind = verdict.partition(":")[0]
            verdicts[pair.command][kind] += 1
            if kind.isupper() or arguments.only:
                print(f"{pair.number}: {pair.command}, {pair.file} {pair.done}: {verdict}")
                said = pair.child.said("stderr").strip()
                print(said if arguments.only else "\n".join(said.splitlines()[-1:]))
                again = f"--seed {arguments.seed} --only {pair.number}"
                print(f"  again: PYTHONPATH=. {sys.executable} tests/slow/fuzz.py {again}", flush=True)
    kinds = sorted({kind for found in verdicts.values() for kind in found}, key=lambda kind: (kind.isupper(), kind))
    print("\ncommand             pairs" + "".join(f"{kind:>12}" for kind in kinds))
    for name, found in verdicts.items():
        print(f"{name:<20}{found.total():>5}" + "".join(f"{found[kind] or '-':>12}" for kind in kinds))
    total = sum(verdicts.values(), Counter[str]())
    print(f"{'all':<20}{total.total():>5}" + "".join(f"{total[kind]:>12}" for kind in kinds))
    print(f"seed {arguments.seed}, {time.monotonic() - began:.0f} s")
    return int(any(kind.isupper() for kind in kinds))


if __name__ == "__main__":
    sys.exit(main())
