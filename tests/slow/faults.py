"""kill -9 at many instants, and every kind of bad input: what the commands leave behind and say.

    make test-faults

Each kill is followed by the same command again; what it ends with is compared, byte for byte, with an undisturbed
run. Instants are drawn by seed, uniformly over the stage's time in the undisturbed run, counted from the stage's
first file.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import interrupted
import numpy as np
from PIL import Image

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import SPLITS
from pipeline.embedding.network import load_network
from pipeline.errors import InputError
from pipeline.files.layout import Run
from pipeline.mining.manifest import open_triplets

ROWS = {"train": 8000, "t10k": 2000}  # of Fashion-MNIST: large enough for several shards, blocks and items
# The state is saved often, so that kills meet it.
OFTEN = """
import sys
from pathlib import Path
from pipeline.process import commands, lock

def main(argv):
    from trainer.loop import train_newest
    from trainer.options import TrainOptions, WarmupOptions
    from trainer.warming import warm_up
    what, run_dir = argv[0], Path(argv[-1])
    if what == "warmup":
        with lock.hold(run_dir, lock.TRAINER):
            warm_up(run_dir, WarmupOptions(steps=60), save_seconds=0.2)
    else:
        train_newest(run_dir, TrainOptions(), save_seconds=0.2)
    return 0

commands.run(main)
"""


def fashion_mnist_part(source: Path, target: Path) -> None:
    """The first ROWS of Fashion-MNIST's IDX files, as IDX files."""
    target.mkdir(parents=True)
    for name, rows in ROWS.items():
        for what in ("images-idx3", "labels-idx1"):
            path = source / f"{name}-{what}-ubyte"
            data = path.read_bytes() if path.exists() else gzip.open(f"{path}.gz").read()
            dimensions = data[3]
            shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
            size = int(np.prod(shape[1:]))
            header = data[:4] + struct.pack(f">{dimensions}I", rows, *shape[1:])
            first = 4 + 4 * dimensions
            (target / path.name).write_bytes(header + data[first : first + rows * size])


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command, and the files whose number tells how far it is, by stage."""

    call: list[str]
    stages: dict[str, str]

    def start(self, run: Path) -> subprocess.Popen[str]:
        call = [sys.executable, *self.call, "--run_dir", str(run)]
        return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps(source: str, recipe: Path) -> dict[str, Step]:
    """recipe: of the rounds, which begin with the corpus; each of the others goes on where the one before it ended."""
    shares = ["--validation_share", ".1", "--eval_share", ".1"]
    return {
        "ingest": Step(
            call=["-m", "pipeline.ingest", "--source", source, *shares],
            stages={"ingest": "corpus.new/*"},
        ),
        "warmup": Step(call=["-c", OFTEN, "warmup"], stages={"warm-up": "rounds/0000/train"}),
        "mine": Step(
            call=["-m", "pipeline.mine", "--negatives", "semi-hard:3,hard:1", "--anchors", "4200"],
            stages={
                "embed": "rounds/0000/embeddings/*",
                "scan": "rounds/0000/work/*/columns",
                "write": "rounds/0000/triplets",
            },
        ),
        "train": Step(call=["-c", OFTEN, "train"], stages={"train": "rounds/0000/train/logs"}),
        "rounds": Step(
            call=["-m", "pipeline.rounds", "--rounds", "2", "--recipe", str(recipe)],
            stages={
                "plan": "plan.json",
                "round 0": "rounds/0000/embeddings/*",
                "round 1": "rounds/0001/embeddings/*",
            },
        ),
    }


def outcome(run: Path, step: str) -> str:
    """A digest of all that a step leaves for the next one."""
    digest, paths = hashlib.sha256(), list[Path]()
    if step == "rounds":
        digest.update(repr(interrupted.outcome(run)).encode())
    elif step == "ingest":
        paths = sorted((run / "corpus").iterdir())
    elif step == "mine":
        paths = sorted((run / "rounds/0000/triplets").iterdir())
    else:
        number = 0 if step == "warmup" else 1
        round = Run(run).round(number)
        digest.update(load_network(round.checkpoint).digest().encode())
        with np.load(round.optimizer) as file:
            for name in file.files:
                digest.update(file[name].tobytes())
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def check_readable(run: Path) -> None:
    """What has a manifest is whole, whatever was killed: raises InputError if not."""
    if Run(run).corpus_manifest.exists():
        corpus = Corpus.open(run)
        for name in SPLITS:
            corpus.split(name).check()
        for round in Run(run).rounds():
            if round.manifest.exists():
                open_triplets(round, corpus)
    for round in Run(run).rounds():
        if round.checkpoint.exists():
            load_network(round.checkpoint)


def undisturbed(step: Step, run: Path) -> dict[str, float]:
    """Runs a step; how long each of its stages took, in seconds."""
    begun: dict[str, float] = {}
    process = step.start(run)
    while process.poll() is None:
        for name, pattern in step.stages.items():
            if name not in begun and any(run.glob(pattern)):
                begun[name] = time.monotonic()
        time.sleep(0.005)
    borders = [*begun.values(), time.monotonic()]
    assert process.returncode == 0, process.communicate()[0]
    return {name: borders[i + 1] - borders[i] for i, name in enumerate(begun)}


@dataclass(frozen=True, kw_only=True)
class Kill:
    stage: str
    at: float
    was_done: bool  # the process ended before, after `lived` seconds
    lived: float
    left: int  # files that it left
    same: bool
    problem: str = ""


def kill_and_resume(step_name: str, step: Step, before: Path, run: Path, stage: str, at: float, expected: str) -> Kill:
    """Kills a step `at` seconds after the stage's first file, and runs it again."""
    shutil.copytree(before, run)
    files = sum(path.is_file() for path in run.rglob("*"))
    process = step.start(run)
    while process.poll() is None and not any(run.glob(step.stages[stage])):
        time.sleep(0.002)
    begun = time.monotonic()
    try:
        process.wait(at)
        was_done = True
    except subprocess.TimeoutExpired:
        process.kill()
        was_done = False
    process.communicate()
    lived = time.monotonic() - begun
    left = sum(path.is_file() for path in run.rglob("*")) - files
    problem = ""
    try:
        check_readable(run)
    except InputError as error:
        problem = f"after the kill: {error}"
    again = step.start(run)
    said = again.communicate()[0]
    if again.returncode:
        problem = said.strip().splitlines()[-1]
    same = not problem and outcome(run, step_name) == expected
    if not same and not problem:
        problem = "another outcome"
    leftovers = [str(p.relative_to(run)) for pattern in (".*.tmp*", "work", "state.npz") for p in run.rglob(pattern)]
    if leftovers:
        same, problem = False, f"left-over files: {leftovers}"
    return Kill(stage=stage, at=at, was_done=was_done, lived=lived, left=left, same=same, problem=problem)


def kills(source: str, scratch: Path, count: int, seed: int, rounds: bool = True) -> list[Kill]:
    """`count` kills, spread over the stages, each resumed and compared. Prints a line each. rounds: theirs too.

    One that comes after the command's end does not count, and is drawn again; so is no more than every second one.
    """
    before: dict[str, Path] = {}
    spans: dict[str, tuple[str, float]] = {}
    expected: dict[str, str] = {}
    run, recipe = scratch / "undisturbed", scratch / "quick.toml"
    run.mkdir()
    recipe.write_text(interrupted.QUICK)
    every = {name: step for name, step in steps(source, recipe).items() if rounds or name != "rounds"}
    for name, step in every.items():
        if name == "rounds":
            run = Path(shutil.copytree(before["warmup"], scratch / "undisturbed-rounds"))
        before[name] = Path(shutil.copytree(run, scratch / f"before-{name}"))
        spans |= {stage: (name, span) for stage, span in undisturbed(step, run).items()}
        expected[name] = outcome(run, name)
    for stage, (name, seconds) in spans.items():
        print(f"undisturbed {stage:<8} {seconds:6.2f} s of {name}", flush=True)
    rng = random.Random(seed)
    done = []
    for number in range(2 * count):
        if sum(not kill.was_done for kill in done) == count:
            break
        stage = list(spans)[number % len(spans)]
        name, seconds = spans[stage]
        place = scratch / f"kill-{number}"
        at = rng.uniform(0, seconds)
        kill = kill_and_resume(name, every[name], before[name], place, stage, at, expected[name])
        shutil.rmtree(place)
        done.append(kill)
        if kill.was_done:  # less else runs on this machine than in the undisturbed run
            spans[stage] = (name, kill.lived)
        what = "already done" if kill.was_done else f"{kill.left:3d} files left"
        print(f"kill {number + 1:3d}  {stage:<8} at {at:5.2f} s  {what}  {kill.problem or 'same'}", flush=True)
    return done


# ---- Bad input. ----


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A way to be wrong: `make` spoils a copy of a mined digits run (or makes a source), and returns the call.

    code: the exit code; says: what its output must contain; rejected: entries of rejected.jsonl, with code 0.
    """

    make: Callable[[Path], list[str]]
    says: str
    code: int = 4
    rejected: int = 0
    limit: int | None = None  # bytes of the largest file that may be written


def _flip(path: Path, at: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _shard(run: Path, what: str) -> Path:
    return next(p for p in sorted(run.glob(what)))


def _ingest(run: Path, source: object, *more: str) -> list[str]:
    return ["-m", "pipeline.ingest", "--run_dir", str(run.parent / "new"), "--source", str(source), *more]


def _mine(run: Path, *more: str) -> list[str]:
    return ["-m", "pipeline.mine", "--run_dir", str(run), *more]


def _train(run: Path, *more: str) -> list[str]:
    return ["-m", "trainer.train", "--run_dir", str(run), *more]


def _remine(run: Path) -> None:
    shutil.rmtree(run / "rounds/0000/triplets")


def _images(run: Path, **files: bytes) -> Path:
    """A folder of 12 good digits in two classes, and the given files in class `a`."""
    root = run.parent / "images"
    for i in range(12):
        path = root / "ab"[i % 2] / f"good-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(path)
    for name, data in files.items():
        (root / "a" / f"{name}.png").write_bytes(data)
    return root


def _png(size: tuple[int, int]) -> bytes:
    """A PNG of one colour, whatever its size."""
    with tempfile.TemporaryFile() as file:
        Image.new("1", size).save(file, "PNG")
        file.seek(0)
        return file.read()


def _arrays(run: Path, **arrays: object) -> str:
    path = run.parent / "arrays.npz"
    np.savez(path, **arrays)
    return f"arrays:{path}"


def _vectors(rows: int = 40, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)


def _digest_of_another_margin(run: Path) -> list[str]:
    return _mine(run, "--margin", "0.3")


def _with(change: Callable[[Path], object], then: Callable[..., list[str]], *more: str) -> Callable[[Path], list[str]]:
    def make(run: Path) -> list[str]:
        change(run)
        return then(run, *more)

    return make


def _edit(path: str, **values: object) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        manifest = json.loads((run / path).read_text()) | values
        (run / path).write_text(json.dumps({name: manifest[name] for name in manifest.keys() - {"checksum"}}))

    return change


def _spoil_model(value: float) -> Callable[[Path], object]:
    """A checkpoint whose last dense layer holds one value everywhere; the round unmined."""

    def change(run: Path) -> None:
        path = Run(run).round(0).checkpoint
        network = load_network(path)
        for variable in network.model.trainable_variables[-2:]:
            variable.assign(np.full(variable.shape, value, np.float32))
        network.save(path)
        _remine(run)

    return change


def _huge_length(run: Path) -> None:
    path = _shard(run, "corpus/train-*.tfrecord")
    length = struct.pack("<Q", 2**60)
    crc, data = google_crc32c.value(length), path.read_bytes()
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF  # as TFRecords have it
    path.write_bytes(length + struct.pack("<I", masked) + data[12:])


def _holder(run: Path) -> list[str]:
    """A process that holds the run directory until it is told to end by this one's end."""
    code = "import sys; from pathlib import Path; from pipeline.process import lock\n"
    code += "with lock.hold(Path(sys.argv[1]), lock.MINER): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    holders.append(holder)
    return _mine(run)


holders: list[subprocess.Popen[str]] = []
TRIPLETS, CORPUS, CHECKPOINT = "rounds/0000/triplets", "corpus", "rounds/0000/checkpoint/model.keras"

BAD = {
    "triplet shard cut": Bad(
        make=_with(lambda r: os.truncate(_shard(r, f"{TRIPLETS}/*.tfrecord"), 1000), _train), says="is not what"
    ),
    "triplet shard, one bit": Bad(
        make=_with(lambda r: _flip(_shard(r, f"{TRIPLETS}/*.tfrecord")), _train), says="SHA-256"
    ),
    "triplet shard missing": Bad(
        make=_with(lambda r: _shard(r, f"{TRIPLETS}/*.tfrecord").unlink(), _train), says="is missing"
    ),
    "triplets.json is no JSON": Bad(
        make=_with(lambda r: (r / TRIPLETS / "triplets.json").write_text("{"), _train), says="is not a manifest"
    ),
    "triplets of another corpus": Bad(
        make=_with(_edit(f"{TRIPLETS}/triplets.json", corpus_fingerprint="f00"), _train), says="f00"
    ),
    "triplets of another metric": Bad(
        make=_with(_edit(f"{TRIPLETS}/triplets.json", metric="cosine"), _train), says="cosine"
    ),
    "triplets of another format": Bad(
        make=_with(_edit(f"{TRIPLETS}/triplets.json", format="x/9"), _train), says="'x/9'"
    ),
    "another margin, round mined": Bad(make=_digest_of_another_margin, says="margin 0.2, asked for 0.3"),
    "extra triplet shard": Bad(
        make=lambda r: [
            "-m", "pipeline.records", "verify",
            str(shutil.copy(_shard(r, f"{TRIPLETS}/*.tfrecord"), r / TRIPLETS / "extra.tfrecord").parent),
        ],
        says="is not listed",
    ),
    "checkpoint changed in place": Bad(
        make=_with(lambda r: (_spoil_model(0.5)(shutil.copytree(r, r.parent / "other")),
                              shutil.copy(r.parent / "other" / CHECKPOINT, r / CHECKPOINT)), _train),
        says="was changed since it was written",
    ),
    "checkpoint is no model": Bad(
        make=_with(lambda r: ((r / CHECKPOINT).write_bytes(b"no model"), _remine(r)), _mine),
        says="was changed since it was written",
    ),
    "NaN embeddings": Bad(make=_with(_spoil_model(float("nan")), _mine), says="NaN"),
    "zero embeddings": Bad(make=_with(_spoil_model(0.0), _mine), says="zero"),
    "corpus shard, one bit": Bad(
        make=_with(lambda r: (_flip(_shard(r, "corpus/train-*.tfrecord")), _remine(r)), _mine), says="is not what"
    ),
    "corpus shard cut": Bad(
        make=_with(lambda r: (os.truncate(_shard(r, "corpus/train-*.tfrecord"), 5000), _remine(r)), _mine),
        says="is not what",
    ),
    "a record of 2^60 bytes": Bad(
        make=_with(_huge_length, lambda r: ["-m", "pipeline.records", "inspect", str(_shard(r, "corpus/train-*d"))]),
        says="1152921504606846976 bytes announced",
    ),
    "corpus index cut": Bad(
        make=_with(lambda r: (os.truncate(_shard(r, "corpus/train-*.npy"), 500), _remine(r)), _mine), says="is not what"
    ),
    "corpus.json edited": Bad(
        make=_with(_edit("corpus/corpus.json", grouped=True), _mine), says="changed by hand"
    ),
    "no corpus": Bad(make=_with(lambda r: shutil.rmtree(r / "corpus"), _mine), says="corpus.json is missing"),
    "another source, ingested": Bad(
        make=lambda r: ["-m", "pipeline.ingest", "--run_dir", str(r), "--source", f"images:{_images(r)}"],
        says="already holds",
    ),
    "image that is text": Bad(
        make=lambda r: _ingest(r, f"images:{_images(r, bad=b'hello')}"), says="1 rejected", code=0, rejected=1
    ),
    "image of zero bytes": Bad(
        make=lambda r: _ingest(r, f"images:{_images(r, bad=b'')}"), says="1 rejected", code=0, rejected=1
    ),
    "image cut in half": Bad(
        make=lambda r: _ingest(r, f"images:{_images(r, bad=_png((500, 500))[:90])}"),
        says="1 rejected", code=0, rejected=1,
    ),
    "decompression bomb": Bad(
        make=lambda r: _ingest(r, f"images:{_images(r, bad=_png((30_000, 30_000)))}"),
        says="1 rejected", code=0, rejected=1,
    ),
    "file name not UTF-8": Bad(
        make=lambda r: _ingest(r, f"images:{_bad_name(_images(r))}"), says="1 rejected", code=0, rejected=1
    ),
    "too many bad images": Bad(
        make=lambda r: _ingest(r, f"images:{_images(r, p=b'1', q=b'2', s=b'3')}"), says="--max_rejected is 10.0%"
    ),
    "no image at all": Bad(make=lambda r: _ingest(r, f"images:{r / 'corpus'}"), says="no folder with files in it"),
    "no such source": Bad(make=lambda r: _ingest(r, "imagenet"), says="no source is called"),
    "no labels": Bad(make=lambda r: _ingest(r, _arrays(r, vectors=_vectors())), says="needs `labels`"),
    "pickled arrays": Bad(
        make=lambda r: _ingest(r, _arrays(r, vectors=_vectors(), labels=np.array([{}] * 40))), says="pickle"
    ),
    "labels of another length": Bad(
        make=lambda r: _ingest(r, _arrays(r, vectors=_vectors(), labels=np.arange(39))), says="40 rows"
    ),
    "images of floats": Bad(
        make=lambda r: _ingest(r, _arrays(r, images=np.zeros((4, 8, 8)), labels=np.arange(4))), says="uint8"
    ),
    "NaN in a vector": Bad(
        make=lambda r: _ingest(r, _arrays(r, vectors=_nan(_vectors()), labels=np.arange(40) % 4)),
        says="1 rejected", code=0, rejected=1,
    ),
    "an id twice": Bad(
        make=lambda r: _ingest(
            r, _arrays(r, vectors=_vectors(), labels=np.arange(40) % 4, ids=np.r_[0, np.arange(39)].astype(str))
        ),
        says="1 rejected", code=0, rejected=1,
    ),
    "empty corpus": Bad(
        make=lambda r: _ingest(r, _arrays(r, vectors=np.empty((0, 4), np.float32), labels=np.empty(0, int))),
        says="holds no example",
    ),
    "one class": Bad(make=lambda r: _begun_arrays(r, np.zeros(40, int)), says="a negative needs two"),
    "100,000 classes of one row": Bad(
        make=lambda r: _begun_arrays(r, np.arange(100_000)), says="need more rows in their class"
    ),
    "disk full while ingesting": Bad(
        make=lambda r: _ingest(r, "digits"), says="mend it", code=1, limit=20_000
    ),
    "disk full while mining": Bad(make=_with(_remine, _mine), says="File too large: '", code=1, limit=20_000),
    "disk full while training": Bad(make=_train, says="File too large: '", code=1, limit=20_000),
    "disk full for TensorBoard's events": Bad(make=_train, says="events.out.tfevents", code=1, limit=3_000),
    "disk full while warming up": Bad(
        make=_with(_remine, lambda r: ["-m", "trainer.warmup", "--run_dir", str(r), "--steps", "3"]),
        says="File too large: '", code=1, limit=20_000,
    ),
    "run directory cannot be made": Bad(
        make=lambda r: ["-m", "pipeline.ingest", "--run_dir", "/proc/run", "--source", "digits"], says="mend it", code=1
    ),
    "held by another process": Bad(make=_holder, says="is held by a process that may mine", code=5),
    "unknown flag": Bad(make=lambda r: _mine(r, "--margn", "1"), says="unknown option --margn", code=2),
    "ids with markup and separators": Bad(
        make=lambda r: _ingest(
            r, _arrays(r, vectors=_vectors(), labels=np.arange(40) % 4,
                       ids=np.array([f"../../<b>{i}</b>\\/" for i in range(40)]))
        ),
        says="next: python -m trainer.init", code=0,
    ),
}  # fmt: skip


def _nan(vectors: np.ndarray) -> np.ndarray:
    vectors[3, 1] = np.nan
    return vectors


def _bad_name(root: Path) -> Path:
    with open(os.fsencode(root / "a") + b"/\xff.png", "wb") as file:
        file.write((root / "a/good-0.png").read_bytes())
    return root


def _begun_arrays(run: Path, labels: np.ndarray) -> list[str]:
    source = _arrays(run, vectors=_vectors(len(labels)), labels=labels)
    new = run.parent / "new"
    shares = ["--validation_share", "0", "--eval_share", "0"]
    call = [sys.executable, "-m", "pipeline.ingest", "--run_dir", str(new), "--source", source, *shares]
    subprocess.run(call, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "trainer.init", "--run_dir", str(new)], check=True, capture_output=True)
    return ["-m", "pipeline.mine", "--run_dir", str(new)]


def try_bad(name: str, mined: Path, scratch: Path) -> tuple[bool, str]:
    """Gives a command one kind of bad input. Returns whether it did as `BAD` says, and its last line."""
    bad = BAD[name]
    scratch.mkdir(parents=True)
    run = Path(shutil.copytree(mined, scratch / "run"))
    call = [sys.executable, *bad.make(run)]
    before = sorted(p for p in scratch.parent.iterdir())

    def limit() -> None:
        if bad.limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (bad.limit, bad.limit))

    done = subprocess.run(call, capture_output=True, text=True, preexec_fn=limit, stdin=subprocess.DEVNULL)
    while holders:
        holder = holders.pop()
        holder.communicate()
    said = done.stdout + done.stderr
    right = done.returncode == bad.code and bad.says in said and "Traceback" not in said
    if bad.rejected:
        path = scratch / "new/corpus/rejected.jsonl"
        right = right and path.exists() and len(path.read_text().splitlines()) == bad.rejected
    right = right and sorted(p for p in scratch.parent.iterdir()) == before  # nothing beside what it was given
    if bad.limit:  # there is space again
        again = subprocess.run(call, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        right = right and again.returncode == 0 and not [path for path in scratch.rglob("*") if ".tmp" in path.name]
    lines = [line for line in (done.stderr if done.returncode else done.stdout).strip().splitlines() if line.strip()]
    line = next((line for line in said.splitlines() if bad.says in line), lines[-1] if lines else "")
    return right, f"exit {done.returncode}: {line.replace(str(scratch), '')}"


def mined_digits(run: Path) -> Path:
    for module, more in (("pipeline.ingest", ["--source", "digits"]), ("trainer.init", []), ("pipeline.mine", [])):
        subprocess.run([sys.executable, "-m", module, "--run_dir", str(run), *more], check=True, capture_output=True)
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion_mnist", type=Path, required=True, help="directory of the four IDX files")
    parser.add_argument("--kills", type=int, default=63)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        fashion_mnist_part(arguments.fashion_mnist, scratch / "data")
        done = kills(f"fashion_mnist:{scratch / 'data'}", scratch, arguments.kills, arguments.seed)
        failed += sum(not kill.same for kill in done)
        failed += sum(not kill.was_done for kill in done) < arguments.kills
        hit = sum(not kill.was_done for kill in done)
        print(f"\n{len(done)} kills, {hit} before the command's end, {sum(not k.same for k in done)} differences\n")
        mined = mined_digits(scratch / "mined")
        for number, name in enumerate(BAD):
            right, said = try_bad(name, mined, scratch / f"bad-{number}")
            failed += not right
            print(f"{'ok ' if right else 'BAD'} {name:<31} {said}", flush=True)
        print(f"\n{len(BAD)} kinds of bad input; {failed} failures in all")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
