"""How fast selection is, against the bare matrix product, FAISS, itself at another size, and its own parts.

    make bench-selection

Every ratio is the median of 5 taken in turn within one run; that of the whole command is the fastest over the fastest
of 5. Embeddings are Fashion-MNIST's 70,000 images through PCA (where a row needs more rows, each image several times
with noise), or unit vectors round random class centres.
"""

import argparse
import contextlib
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.table import Row, finish, paired, show
from pipeline import selection
from pipeline.selection import Block, Rule

THREADS = 2
BOTH = (("semi-hard", 1.0), ("hard", 1.0))


# ---- Embeddings. ----


def normalise(vectors: np.ndarray) -> np.ndarray:
    return selection.to_grid(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def clustered(rows: int, dim: int, classes: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(labels in order, embeddings): unit vectors round a random centre a class."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) * classes // rows
    centres = normalise(rng.standard_normal((classes, dim)).astype(np.float32))
    spread = rng.standard_normal((rows, dim), dtype=np.float32) * np.float32(noise / dim**0.5)
    return label, normalise(centres[label] + spread)


def fashion_mnist(directory: str, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels in order, embeddings) of all 70,000 images through PCA."""
    from pipeline.sources import _read_idx

    names = ("train", "t10k")
    images = np.concatenate([_read_idx(Path(directory, f"{n}-images-idx3-ubyte")).reshape(-1, 784) for n in names])
    label = np.concatenate([_read_idx(Path(directory, f"{n}-labels-idx1-ubyte")) for n in names])
    order = np.argsort(label, kind="stable")
    pixels = images[order].astype(np.float32) / 255
    pixels -= pixels.mean(axis=0)
    _, _, components = np.linalg.svd(pixels[::7], full_matrices=False)
    return label[order].astype(np.int64), normalise(pixels @ components[:dim].T)


def repeated(label: np.ndarray, embedding: np.ndarray, times: int) -> tuple[np.ndarray, np.ndarray]:
    """Every row `times` times, each with noise of its own."""
    rng = np.random.default_rng(0)
    copies = np.repeat(embedding, times, axis=0)
    copies += rng.standard_normal(copies.shape, dtype=np.float32) * np.float32(0.3 / embedding.shape[1] ** 0.5)
    return np.repeat(label, times), normalise(copies)


# ---- What is timed. ----


class Corpus:
    """A corpus in memory: pairs of some anchors, and the columns dealt to blocks."""

    def __init__(self, rule: Rule, label: np.ndarray, embedding: np.ndarray, anchors: np.ndarray | None = None):
        rows = np.arange(len(label))
        anchors = rows if anchors is None else anchors
        own = np.stack([np.searchsorted(label, label[anchors], side) for side in ("left", "right")], axis=1)
        positive = selection.draw_positives(rule, anchors, own)
        block = Block(row=anchors, embedding=embedding[anchors])
        self.rule, self.embedding = rule, embedding
        self.pairs = selection.make_pairs(rule, block, own, positive, embedding[np.maximum(positive, 0)])
        blocks = selection.column_blocks(len(label))
        dealt = np.argsort(selection.column_block_of(rule, rows, blocks), kind="stable")
        counts = np.bincount(selection.column_block_of(rule, rows, blocks), minlength=blocks)
        self.columns = [
            Block(row=part, embedding=embedding[part])
            for part in (np.sort(p) for p in np.split(dealt, np.cumsum(counts)[:-1]))
        ]

    def scan(self) -> selection.Found:
        if self.rule.pick == "nearest":
            return selection.scan_nearest(self.rule, self.pairs, self.columns, THREADS)
        column = self.columns.__getitem__
        return selection.scan_random(self.rule, self.pairs, 0, column, len(self.columns), THREADS)

    def select(self) -> dict[str, int]:
        return selection.choose(self.rule, self.pairs, self.scan())[1]


def sgemm_large(anchors: np.ndarray, embedding: np.ndarray) -> None:
    """The same product in a few large calls of a multi-threaded BLAS, into one buffer."""
    out = np.empty((1024, len(embedding)), np.float32)
    for start in range(0, len(anchors), 1024):
        part = anchors[start : start + 1024]
        np.dot(part, embedding.T, out=out[: len(part)])


def sgemm_tiles(anchors: np.ndarray, embedding: np.ndarray, shape: tuple[int, int]) -> None:
    """The same product in tiles, a single-threaded BLAS call a thread."""

    def work(start: int) -> None:
        part = anchors[start : start + shape[0]]
        out = np.empty((len(part), shape[1]), np.float32)
        for column in range(0, len(embedding), shape[1]):
            right = embedding[column : column + shape[1]]
            if len(right) == shape[1]:
                np.dot(part, right.T, out=out)
            else:
                part @ right.T

    with selection.one_blas_thread(), ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(0, len(anchors), shape[0])))


def over_sgemm(what: str, corpus: Corpus, bound: float) -> Row:
    """The scan over the bare product, at whichever of its settings is the fastest one here."""
    anchors, embedding = np.ascontiguousarray(corpus.pairs.anchors.embedding), corpus.embedding
    settings = {
        "large calls": lambda left: sgemm_large(left, embedding),
        "tiles of 512 x 512": lambda left: sgemm_tiles(left, embedding, (512, 512)),
        "tiles of 2048 x 256": lambda left: sgemm_tiles(left, embedding, (2048, 256)),
    }
    taken = {}
    for name, product in settings.items():
        product(anchors[:4096])
        started = time.perf_counter()
        product(anchors)
        taken[name] = time.perf_counter() - started
    best = min(taken, key=lambda name: taken[name])
    ratio, ours, bare = paired(corpus.scan, lambda: settings[best](anchors))
    return Row(what=what, value=ratio, bound=bound, note=f"{ours:.2f} s, sgemm in {best} {bare:.2f} s")


def over_faiss(corpus: Corpus) -> Row:
    import faiss

    embedding = np.ascontiguousarray(corpus.embedding)
    ratio, ours, theirs = paired(corpus.scan, lambda: faiss.knn(embedding, embedding, 100))
    note = f"{ours:.2f} s, FAISS {faiss.__version__} {theirs:.2f} s"
    return Row(what="the same over faiss.knn(k=100), the nearest 100 only", value=ratio, bound=1.0, note=note)


def peak_of_this_process() -> float:
    """MB. Linux' high-water mark of this program alone: getrusage's counts the parent before exec too."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def peak_memory(label: np.ndarray, embedding: np.ndarray) -> float:
    """MB that a process of its own needs at its peak beyond the embeddings, while it scans 8,192 anchors."""
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch, "label.npy"), label)
        np.save(Path(scratch, "embedding.npy"), embedding)
        call = [sys.executable, "-m", "benchmarks.selection", "--peak", scratch]
        return float(subprocess.run(call, capture_output=True, text=True, check=True).stdout)


def report_peak(directory: str) -> None:
    label, embedding = (np.load(Path(directory, f"{name}.npy")) for name in ("label", "embedding"))
    rule = Rule(shares=BOTH, pick="nearest", positives=4)
    rows = np.arange(len(label))
    columns = [Block(row=rows[c : c + 4096], embedding=embedding[c : c + 4096]) for c in range(0, len(rows), 4096)]
    for start in range(0, 8192, 2048):  # as a work item of the job does it: 2,048 anchors against all columns
        anchors = Block(row=rows[start : start + 2048], embedding=embedding[start : start + 2048])
        own = np.stack([np.searchsorted(label, label[anchors.row], side) for side in ("left", "right")], axis=1)
        positive = selection.draw_positives(rule, anchors.row, own)
        pairs = selection.make_pairs(rule, anchors, own, positive, embedding[positive])
        selection.scan_nearest(rule, pairs, columns, THREADS)
    print(peak_of_this_process() - embedding.nbytes / 2**20)


# ---- The whole command on Fashion-MNIST. ----

BARE = """
import sys, time
import numpy as np
from pathlib import Path
from pipeline import records, selection
run_dir = Path(sys.argv[1])
tf = records.import_tensorflow()
corpus = records.open_corpus(run_dir)
split = corpus.split("train")
model = records.load_checkpoint(records.checkpoint_path(run_dir, 0))
forward = tf.function(lambda x: model(x, training=False), input_signature=[tf.TensorSpec([256, 28, 28, 1])])
stored = split.read(np.arange(split.rows))
images = tf.io.parse_example(stored, {"image": tf.io.FixedLenFeature([], tf.string)})["image"]
forward(tf.zeros([256, 28, 28, 1]))
started = time.perf_counter()
decode = lambda x: tf.cast(tf.io.decode_png(x, channels=1), tf.float32)
out = [forward(x) for x in tf.data.Dataset.from_tensor_slices(images).map(decode, num_parallel_calls=2)
       .batch(256, drop_remainder=True).prefetch(2)]
forward_seconds = time.perf_counter() - started

embedding = selection.to_grid(np.concatenate([x.numpy() for x in out]))
from benchmarks.selection import Corpus
label = split.class_of(np.arange(len(embedding)))
corpus_ = Corpus(selection.Rule(pick=sys.argv[2], positives=2), label, embedding)
corpus_.scan()
started = time.perf_counter()
corpus_.scan()
scan_seconds = time.perf_counter() - started

directory = records.manifest_path(run_dir, 0).parent
shards = [list(records.read_records(path)) for path in sorted(directory.glob("*.tfrecord"))]
started = time.perf_counter()
for number, shard in enumerate(shards):
    with tf.io.TFRecordWriter(str(run_dir / f"bare-{number}")) as writer:
        for record in shard:
            writer.write(record)
write_seconds = time.perf_counter() - started
print(forward_seconds, scan_seconds, write_seconds)
"""


def whole_command(directory: str, pick: str, repeat: int) -> Row:
    """`pipeline.mine` as a process, over the sum of its bare parts: forward passes, scan, writing the same bytes.

    Each at the fastest of its repetitions: in some processes the bare loop of forward passes takes twice as long.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch, "run")
        call = [sys.executable, "-m"]
        source = ["--run_dir", str(run_dir)]
        quiet = {"check": True, "capture_output": True, "text": True}
        ingest = ["pipeline.ingest", *source, "--source", f"fashion_mnist:{directory}"]
        subprocess.run([*call, *ingest, "--validation_share", "0", "--eval_share", "0"], **quiet)
        subprocess.run([*call, "trainer.train", *source, "--online", "--steps", "50"], **quiet)
        walls, bares = [], []
        for _ in range(repeat):
            for part in ("triplets", "embeddings"):
                shutil.rmtree(run_dir / "rounds/0000" / part, ignore_errors=True)
            started = time.perf_counter()
            subprocess.run([*call, "pipeline.mine", *source, "--positives", "2", "--pick", pick], **quiet)
            walls.append(time.perf_counter() - started)
            done = subprocess.run([sys.executable, "-c", BARE, str(run_dir), pick], **quiet)
            bares.append([float(value) for value in done.stdout.split()])
    parts = [min(column) for column in zip(*bares, strict=True)]
    note = f"{min(walls):.1f} s; forward {parts[0]:.1f}, scan {parts[1]:.1f}, write {parts[2]:.1f} s"
    return Row(
        what=f"whole mine of Fashion-MNIST, P = 2, {pick}, over its bare parts",
        value=min(walls) / sum(parts), bound=1.5, note=note,
    )  # fmt: skip


def trained_omniglot(source: str) -> tuple[np.ndarray, np.ndarray]:
    """(labels, embeddings) of Omniglot's training classes under a network warmed up for 300 steps."""
    from pipeline import ingest, records
    from pipeline.embed import Embedder
    from trainer import train

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        if source.endswith(".zip"):
            shutil.unpack_archive(source, scratch)
            source = str(next(path for path in Path(scratch).iterdir() if path.is_dir()))
        run_dir = Path(scratch, "run")
        ingest.main(["--run_dir", str(run_dir), "--source", f"images:{source}"])
        train.main(["--run_dir", str(run_dir), "--online", "--steps", "300"])
        split = records.open_corpus(run_dir).split("train")
        rows = np.arange(split.rows)
        embedder = Embedder(records.checkpoint_path(run_dir, 0), records.open_corpus(run_dir))
        return split.class_of(rows), embedder(split.read(rows))


def million() -> None:
    """1,000,000 x 64, 20,000 anchors: run once, in a process whose peak it reports."""
    label, embedding = clustered(1_000_000, 64, 50_000, 1.0)
    for pick in ("nearest", "random"):
        rule = Rule(shares=BOTH, pick=pick, positives=4)
        corpus = Corpus(rule, label, embedding, np.arange(0, 1_000_000, 50))
        started = time.perf_counter()
        counts = corpus.select()
        taken = time.perf_counter() - started
        peak = peak_of_this_process()
        print(f"1,000,000 x 64, 20,000 anchors, {pick}: {taken:.1f} s, peak {peak:,.0f} MB, {counts}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion_mnist", help="directory of the four IDX files")
    parser.add_argument("--omniglot", help="folder of images, or a zip of one")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--million", action="store_true", help="only 1,000,000 rows, once")
    arguments = parser.parse_args()
    if arguments.peak:
        report_peak(arguments.peak)
        return 0
    if arguments.million:
        million()
        return 0
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        show(row)

    nearest = Rule(shares=BOTH, pick="nearest", positives=4)
    label, embedding = fashion_mnist(arguments.fashion_mnist, 64)
    fashion = Corpus(nearest, label, embedding)
    add(over_sgemm("scan 70,000 x 64, P = 4, nearest semi-hard + hardest, over sgemm", fashion, 1.35))
    add(over_faiss(fashion))
    for dim in (64, 128, 256):
        many = Corpus(nearest, *clustered(32_000, dim, 1600, 1.0))
        add(over_sgemm(f"scan 32,000 x {dim}, 1,600 classes of 20, over sgemm", many, 1.35))

    label4, embedding4 = repeated(label, embedding, 4)
    anchors = np.arange(0, len(label4), 4)
    random = Rule(pick="random", positives=4, margin=0.5)
    full = Corpus(Rule(pick="nearest", positives=4, margin=0.5), label4, embedding4, anchors)
    early = Corpus(random, label4, embedding4, anchors)
    counts = early.select()
    early_ratio, ours, theirs = paired(early.scan, full.scan)
    share = 1 - counts["no_semi_hard_negative"] / counts["pairs"]
    note = f"{ours:.2f} s, full {theirs:.1f} s; {share:.1%} of the pairs served"
    add(Row(what="random over full scan, 280,000 rows, 70,000 anchors", value=early_ratio, bound=0.2, note=note))

    if arguments.omniglot:
        label_o, embedding_o = trained_omniglot(arguments.omniglot)
        pair = [Corpus(Rule(pick=pick, positives=4), label_o, embedding_o) for pick in ("random", "nearest")]
        ratio, ours, theirs = paired(pair[0].scan, pair[1].scan)
        counts = pair[0].select()
        note = f"{ours:.3f} s, full {theirs:.3f} s; {counts['no_semi_hard_negative'] / counts['pairs']:.0%} bands empty"
        add(Row(what="the same, trained Omniglot embeddings, empty bands included", value=ratio, note=note))

    once = {pick: Corpus(Rule(pick=pick, positives=4, margin=0.5), label, embedding) for pick in ("nearest", "random")}
    label2, embedding2 = repeated(label, embedding, 2)
    double = {
        pick: Corpus(Rule(pick=pick, positives=4, margin=0.5), label2, embedding2) for pick in ("nearest", "random")
    }
    for pick, bound in (("nearest", 4.4), ("random", 2.3)):
        ratio, two, one = paired(double[pick].scan, once[pick].scan)
        name = "full scan" if pick == "nearest" else "random, early leave"
        add(Row(what=f"time at 2N over N, {name}", value=ratio, bound=bound, note=f"{two:.2f} s, {one:.2f} s"))

    sizes = ((label4, embedding4), (label, embedding))
    large, small = (statistics.median(peak_memory(*data) for _ in range(5)) for data in sizes)
    note = f"{large:.0f} MB, {small:.0f} MB"
    what = "peak memory beyond the embeddings, 280,000 rows over 70,000"
    add(Row(what=what, value=large / small, bound=1.1, note=note))

    for pick in ("random", "nearest"):
        add(whole_command(arguments.fashion_mnist, pick, repeat=5))
    return finish("selection", rows)


if __name__ == "__main__":
    sys.exit(main())
